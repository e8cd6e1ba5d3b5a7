"""
Make the environment that tests/test_label.py starts MONAI Label in: python tests/label_environment.py DIR

It is one of its own as MONAI Label needs numpy below 2. The versions stand in label_requirements.txt. Indexes are pip's
own settings; "python3 quickstart.py --help" says how to name one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("label_requirements.txt")

# Where pip finds torch for CPUs but torchvision for GPUs, "import torchvision" fails, as its compiled part does not
# load. MONAI Label imports it for drawing pictures alone: it is enough to declare the two operators it misses.
OPERATORS = '''\
"""Declare the operators of a torchvision that is built for another torch."""

import sys
from importlib.abc import MetaPathFinder


class Declare(MetaPathFinder):
    """Finds nothing, but sees that torchvision is about to be imported."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "FRAGMENT")
            Declare.kept = self.library
            for operator in ("nms", "qnms"):
                self.library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, Declare())
'''


def main(directory: str) -> None:
    """Install into a new environment in the directory, and check that MONAI Label's server can be imported."""
    python = Path(directory).absolute() / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    torch = next(line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch=="))
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "--no-deps", "-r", str(REQUIREMENTS)], check=True)
    tried = subprocess.run([str(python), "-c", "import torchvision"], capture_output=True, text=True)
    if "torchvision::nms does not exist" in tried.stderr:
        packages = next(python.parents[1].glob("lib/python*/site-packages"))
        (packages / "declare_torchvision_operators.py").write_text(OPERATORS)
        (packages / "declare_torchvision_operators.pth").write_text("import declare_torchvision_operators\n")
    subprocess.run([str(python), "-c", "import monailabel.app"], check=True, cwd=directory)
    print(f"Ready. The tests take it by the variable OMNET_LABEL_PYTHON={python}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit((__doc__ or "").strip())
    main(sys.argv[1])
