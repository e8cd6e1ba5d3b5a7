"""
Make an environment that holds what a bundle's metadata lists and the tools of the model zoo's CI, and nothing else.

  python3 tests/zoo/environment.py FOLDER [METADATA]

FOLDER is made with the venv module; METADATA is by default that of the bundle in this checkout. It takes about 1.3 GB
with the CPU build of torch; "python3 quickstart.py --help" says how to get that build.
"""

import json
import subprocess
import sys
import venv
from pathlib import Path

METADATA = Path(__file__).parents[2] / "bundle" / "configs" / "metadata.json"
ZOO_TOOLS = [
    "jsonschema",
    "pyyaml",
    "black",
    "isort",
    "flake8",
    "flake8-bugbear",
    "flake8-comprehensions",
    "pep8-naming",
]


def requirements(metadata: dict) -> list[str]:
    """List what the zoo's CI installs for a bundle, torch first."""
    named = {"torch": "pytorch_version", "monai": "monai_version", "numpy": "numpy_version"}
    versions = {name: metadata[key] for name, key in named.items()} | metadata["required_packages_version"]
    return [f"{name}=={version}" for name, version in versions.items()]


def main(arguments: list[str]) -> int:
    """Make the environment; return the exit status."""
    if len(arguments) not in (1, 2) or arguments[0].startswith("-"):
        print((__doc__ or "").strip())
        return 2
    folder = Path(arguments[0])
    metadata = json.loads(Path(*arguments[1:] or [METADATA]).read_text(encoding="utf-8"))
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    torch, *others = requirements(metadata)
    # Alone first, so that no other package's wish brings another build of it.
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, torch, *others, *ZOO_TOOLS], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
