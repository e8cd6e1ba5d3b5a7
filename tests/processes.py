"""Commands of the form ``python -m MODULE ...``, without the seconds that each would take to import torch and MONAI."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

# A process that has imported them, but has run nothing; each command is a fork of it, and imports what else it needs.
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["monai.bundle", "omnet_monai.segment"])


def start_python(words: Sequence[str], folder: Path, stdout: Path, stderr: Path) -> BaseProcess:
    """Start ``python -m`` with these words in a folder, in a process group of its own."""
    process = _server.Process(target=_run, args=(list(words), folder, stdout, stderr))
    process.start()
    return process


def run_python(words: Sequence[str], folder: Path, seconds: float = 300) -> CompletedProcess[str]:
    """Run ``python -m`` with these words in a folder, and return its status and what it printed."""
    with TemporaryDirectory() as temporary:
        stdout, stderr = (Path(temporary, name) for name in ("stdout", "stderr"))
        process = start_python(words, folder, stdout, stderr)
        process.join(seconds)
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
            raise TimeoutError(f"python -m {' '.join(words)}: not done after {seconds:g} s")
        return CompletedProcess(list(words), process.exitcode, stdout.read_text(), stderr.read_text())


def _run(words: list[str], folder: Path, stdout: Path, stderr: Path) -> None:
    os.setsid()
    for stream, path in enumerate((stdout, stderr), start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.chdir(folder)
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
