"""
Set up omnet-monai in .venv beside this file, then run it. Needs Python 3.11 or later, nothing else.

  python3 quickstart.py                 train on generated cases, segment, score; results in quickstart/
  python3 quickstart.py test [ARGS]     run the tests, up to four at a time; ARGS go to pytest
  python3 quickstart.py setup           install what development needs, and stop

The first run installs the versions in constraints.txt with pip, later ones start at once. On Linux, pip's default torch
brings GPU libraries of several GB. For the CPU build of about 200 MB, set the environment variable PIP_EXTRA_INDEX_URL
to the address of PyTorch's own index for CPU wheels before the first run: https://pytorch.org/get-started/locally shows
it under "CPU". PIP_INDEX_URL names a mirror of your own.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, *(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")))
STAMP = os.path.join(VENV, "installed.txt")
DEVELOPMENT = "[test,dev]"
# A process for each core, of about 1 GB.
BESIDE_EACH_OTHER = ["--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal"]
START = time.monotonic()


def say(step: int, text: str) -> None:
    """Print one line of progress with the seconds since the start."""
    print(f"[{step}/4] {time.monotonic() - START:4.0f} s  {text}", flush=True)


def missing() -> str:
    """Say what this Python lacks to go on, empty if nothing."""
    if sys.version_info < (3, 11):
        return f"omnet-monai needs Python 3.11 or later; this is {sys.version.split()[0]} ({sys.executable})."
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        package = f"python3.{sys.version_info[1]}-venv"
        return f"This Python cannot make virtual environments; on Debian or Ubuntu: sudo apt install {package}"
    return ""


def fingerprint() -> str:
    """Hash what decides the installation: the pinned versions, this folder and this Python."""
    state = hashlib.sha256(f"{ROOT} {sys.version_info[:2]}".encode())
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
        with open(os.path.join(ROOT, name), "rb") as file:
            state.update(file.read())
    return state.hexdigest()


def usable() -> bool:
    """Tell whether the environment has a working Python of this version, with pip."""
    code = f"import pip, sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    return os.path.exists(PYTHON) and subprocess.run([PYTHON, "-c", code], stderr=subprocess.DEVNULL).returncode == 0


def install(extras: str) -> None:
    """Install the package and its dependencies, unless the stamp of an earlier, finished installation fits."""
    wanted, sound = fingerprint(), usable()
    if sound and os.path.exists(STAMP):
        with open(STAMP, encoding="utf-8") as file:
            installed, _, present = file.read().partition(" ")
        if installed == wanted and present in (extras, DEVELOPMENT):
            return say(3, "Everything is installed already")
        os.remove(STAMP)

    say(1, "Creating the environment .venv")
    subprocess.run([sys.executable, "-m", "venv", *([] if sound else ["--clear"]), VENV], check=True)
    pip = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check"]
    with open(os.path.join(ROOT, "constraints.txt"), encoding="utf-8") as file:
        torch = next(line.strip() for line in file if line.startswith("torch=="))
    say(2, f"Installing {torch}, the largest part: minutes where it has to be downloaded")
    subprocess.run([*pip, torch], cwd=ROOT, check=True)
    say(3, f"Installing omnet-monai{extras} and what it needs: a minute or two")
    subprocess.run([*pip, "-qq", "-c", "constraints.txt", "-e", "." + extras], cwd=ROOT, check=True)
    with open(STAMP, "w", encoding="utf-8") as file:
        file.write(f"{wanted} {extras}")


def main(arguments: list) -> int:
    """Set up and run; return the exit status."""
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("demo", [])
    if verb in ("-h", "--help") or verb not in ("demo", "test", "setup") or (rest and verb != "test"):
        print((__doc__ or "").strip())
        return 0 if verb in ("-h", "--help") else 2
    lack = missing()
    if lack:
        print(lack, file=sys.stderr)
        return 1
    try:
        install("" if verb == "demo" else DEVELOPMENT)
    except subprocess.CalledProcessError as error:
        print("The installation stopped; the lines above say why. Run this again to go on.", file=sys.stderr)
        return error.returncode
    if verb == "setup":
        say(4, "Ready: .venv")
        return 0
    if rest[:1] == ["--"]:
        rest = rest[1:]
    command = ["pytest", *BESIDE_EACH_OTHER, *rest] if verb == "test" else ["omnet_monai", "demo", "quickstart"]
    say(4, "Running python -m " + " ".join(command))
    return subprocess.run([PYTHON, "-m", *command], cwd=ROOT).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
