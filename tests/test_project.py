"""What holds for the project as a whole: one version, imports that go downward, short modules, clean files."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest

import omnet_monai

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "omnet_monai"

# A module imports only what stands before it, reading this table like a page: lower layers, then to its left.
LAYERS = (
    "regions files",
    "networks.blocks networks.folding sequence_order measures checks layouts folders finding reading images losses"
    " cropping normalization transforms postprocessing edema loading sampling datalist phantom inferers optimization"
    " exported distributed metrics uncertainty summary augmentation caching lesions",
    "networks.nets networks.cascade networks curriculum weights checkpoint validation",
    "report results pictures page scoring tracking cost demo preparation variants comparison budget ablation packaging"
    " export zoo machine rivals timing benchmark segmentation overview outputs segment __main__",
)
ORDER = ["omnet_monai"] + [f"omnet_monai.{name}" for layer in LAYERS for name in layer.split()]
FILES = sorted(PACKAGE.rglob("*.py"))

# Patterns that do not match themselves.
HOSTS = re.compile(r"\b(py(?:pi|thonhosted)\.org|download\.py(?:torch)\.org|registry\.(?:npmjs)|deb\.(?:debian))")
MACHINE_PATHS = re.compile(r"(?<![\w.~-])/(?:root|home|work|farm|Users)/\w|/bash_(?:jobs)")


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source: str) -> set[str]:
    """Every module of the package that the source imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} must be an absolute import"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            # "from omnet_monai import regions" imports a module, "from omnet_monai.regions import TASKS" a member.
            names.update(members & set(ORDER) or {str(node.module)})
    return {name for name in names if name.split(".")[0] == "omnet_monai"}


def tracked_files() -> list[Path]:
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def test_package_bundle_and_changelog_agree_on_the_version() -> None:
    metadata = json.loads((ROOT / "bundle" / "configs" / "metadata.json").read_text())
    releases = re.findall(r"^## \[?(\d[^\]\s]*)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    citation = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    assert metadata["version"] == omnet_monai.__version__
    assert metadata["version"] in metadata["changelog"]
    assert releases[0] == omnet_monai.__version__
    assert citation is not None
    assert citation[1] == omnet_monai.__version__


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_go_only_downward(file: Path) -> None:
    name = module_name(file)
    assert name in ORDER, f"{name} stands on no layer: add it to LAYERS"
    above = {other for other in imported_modules(file.read_text()) if ORDER.index(other) >= ORDER.index(name)}
    assert not above, f"{name} must not import {sorted(above)}"


def test_every_kind_of_import_counts() -> None:
    source = "import omnet_monai.losses\nfrom omnet_monai import regions\nimport torch\n"
    source += "def late():\n    from omnet_monai.networks import OMNet\n"
    assert imported_modules(source) == {"omnet_monai.losses", "omnet_monai.regions", "omnet_monai.networks"}


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_a_module_is_short_and_opens_with_one_line_and_its_names(file: Path) -> None:
    text = file.read_text()
    tree = ast.parse(text)
    assigned = {ast.unparse(target) for node in tree.body if isinstance(node, ast.Assign) for target in node.targets}
    docstring = ast.get_docstring(tree)
    assert len(text.splitlines()) <= 250
    assert docstring is not None
    assert "\n" not in docstring
    # The package's own __init__ holds the version alone, and nobody imports __main__.
    assert "__all__" in assigned or module_name(file) in ("omnet_monai", "omnet_monai.__main__")


def test_only_the_weights_are_large() -> None:
    large = {file.relative_to(ROOT).as_posix() for file in tracked_files() if file.stat().st_size > 2_000_000}
    assert large <= {"bundle/models/model.pt"}


@pytest.mark.parametrize("pattern", [HOSTS, MACHINE_PATHS], ids=["registry hosts", "machine paths"])
def test_no_file_names_a(pattern: re.Pattern[str]) -> None:
    found = []
    for file in tracked_files():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a binary file
            continue
        found += [f"{file.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert not found


def test_the_patterns_find_what_they_name() -> None:
    host = "py" + "pi.org"
    assert HOSTS.search(f"see https://{host}/simple")
    assert MACHINE_PATHS.search("in /" + "home/someone")
    assert not MACHINE_PATHS.search("see https://example.org/home/page, ~/work/x and network/home/y")


def test_both_licenses_are_the_same_text() -> None:
    assert (ROOT / "LICENSE").read_text() == (ROOT / "bundle" / "LICENSE").read_text()
