"""
Run tests under other versions of Python and packages: one environment at a time, removed before the next.

  python tests/matrix.py                     the rows of every time: fast tests under Python 3.11 with the lowest
                                             versions that setup.cfg allows, but for torch, and with the pinned ones
  python tests/matrix.py 3.12 3.13           rows by name: import and network tests; torch is downloaded for each

A row needs its Python as python3.x on the path, and a few GB of disk for as long as it runs. The versions are those of
constraints.txt but for what a row says. Settings of pip, PIP_EXTRA_INDEX_URL for the CPU build of torch among them,
hold here too. Prints what each row ran with and found; the exit status is 1 if a row failed or could not run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Whole trainings, the documentation's commands and what only concerns the project's files: for the main environment.
LONG = ("demo", "distributed", "docs", "federated", "project", "quickstart", "tracking", "workflow")
FAST = ["tests", *(f"--ignore=tests/test_{name}.py" for name in LONG)]
NETWORK = ["tests/test_networks.py", "tests/test_losses.py"]


def lowest() -> dict[str, str]:
    """Return the lower bounds of setup.cfg; that of torch is left out, whose other versions are GB to download."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    bounds = dict(line.split(">=") for line in parser["options"]["install_requires"].split())
    return {package: bound for package, bound in bounds.items() if package != "torch"}


ROWS: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "3.11-lowest": ("3.11", lowest(), FAST),
    "3.11": ("3.11", {}, FAST),
    "3.12": ("3.12", {}, NETWORK),
    "3.13": ("3.13", {}, NETWORK),
}
EVERY_TIME = ("3.11-lowest", "3.11")
VERSIONS = "import sys, numpy, torch, monai, omnet_monai.__main__ as m; print(f'Python {sys.version.split()[0]}',"
VERSIONS += " f'numpy {numpy.__version__}', f'torch {torch.__version__}', f'monai {monai.__version__}', sep=', ')"


def find_python(version: str) -> str | None:
    """Return an interpreter of a version that runs, ``None`` if there is none; a shim may be there and not run."""
    path = shutil.which(f"python{version}")
    return path if path and subprocess.run([path, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0 else None


def constraints(changes: dict[str, str]) -> str:
    """Return the text of constraints.txt with some versions replaced."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for package, version in changes.items():
        text, found = re.subn(rf"^{package}==.*$", f"{package}=={version}", text, flags=re.MULTILINE)
        if not found:
            raise ValueError(f"constraints.txt must pin {package}")
    return text


def run_row(interpreter: str, changes: dict[str, str], tests: list[str]) -> tuple[bool, str]:
    """Build an environment, run the tests in it, remove it; return whether all passed, and what there is to say."""
    with tempfile.TemporaryDirectory(prefix="omnet-matrix-") as folder:
        pins = Path(folder, "constraints.txt")
        pins.write_text(constraints(changes), encoding="utf-8")
        subprocess.run([interpreter, "-m", "venv", f"{folder}/venv"], check=True)
        python = str(Path(folder, "venv", "Scripts" if os.name == "nt" else "bin", "python"))
        pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-c", str(pins)]
        for what in (["torch"], ["-e", ".[test]"]):  # torch first and alone, see constraints.txt
            subprocess.run([*pip, *what], cwd=ROOT, check=True)
        # The environment's own package, whatever the caller's variable says.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        ask = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True, env=environment)
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        tested = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
        if tested.returncode:
            print(tested.stdout)
        *_, summary = ["pytest did not start", *tested.stdout.strip().splitlines()]
        return tested.returncode == 0, f"{ask.stdout.strip()}: {summary}"


def main(names: list[str]) -> int:
    """Run the rows of these names, and return the exit status."""
    if any(name not in ROWS for name in names):
        print(f"{(__doc__ or '').strip()}\n\nrows: {', '.join(ROWS)}")
        return 0 if names in (["-h"], ["--help"]) else 2
    results = []
    for name in names or EVERY_TIME:
        version, changes, tests = ROWS[name]
        start, interpreter = time.monotonic(), find_python(version)
        passed, said = False, f"not run: no python{version} on the path that starts"
        if interpreter:
            try:
                passed, said = run_row(interpreter, changes, tests)
            except subprocess.CalledProcessError as error:
                said = f"not run: {' '.join(map(str, error.cmd))[-80:]} ended with {error.returncode}"
        results.append(passed)
        print(f"{name:12} {'passed' if passed else 'FAILED'} {time.monotonic() - start:5.0f} s  {said}", flush=True)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
