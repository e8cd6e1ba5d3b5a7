"""The set-up script: what it says where it cannot work, and in which order it installs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "quickstart.py"


@pytest.fixture
def quickstart(tmp_path: Path) -> ModuleType:
    """The script as a module whose environment would lie in tmp_path."""
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.VENV, module.STAMP = str(tmp_path / ".venv"), str(tmp_path / "installed.txt")
    return module


def test_a_missing_venv_module_is_one_line_with_the_package_to_install(
    quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find(name))
    assert quickstart.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"sudo apt install python3.{sys.version_info[1]}-venv")


def test_an_old_python_is_one_line(
    quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 0, "final", 0))
    assert quickstart.main(["test"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("omnet-monai needs Python 3.11 or later")


def test_torch_is_installed_first_and_alone_and_the_rest_is_constrained(
    quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def record(command: list[str], **kwargs: object) -> subprocess.CompletedProcess:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", record)
    assert quickstart.main(["test", "-k", "losses"]) == 0
    installs = [command for command in commands if "install" in command]
    assert [command[-1].partition("==")[0] for command in installs] == ["torch", ".[test,dev]"]
    assert installs[1][-4:-2] == ["-c", "constraints.txt"]
    assert commands[-1][1:] == ["-m", "pytest", *quickstart.BESIDE_EACH_OTHER, "-k", "losses"]


def test_an_installation_that_stops_leaves_no_stamp_and_its_status(
    quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(command: list[str], **kwargs: object) -> None:
        raise subprocess.CalledProcessError(7, command)

    monkeypatch.setattr(quickstart, "usable", lambda: False)
    monkeypatch.setattr(subprocess, "run", fail)
    assert quickstart.main([]) == 7
    assert "Run this again" in capsys.readouterr().err
    assert not Path(quickstart.STAMP).exists()
