"""The commands that the documentation tells a user to run."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.utils import optional_import
from processes import run_python

ROOT = Path(__file__).parents[1]
TINY_TRAINING = (
    "--network_def#features [2,2,4,4] --patch_size [24,16,16] --steps_per_epoch 1 --cases_per_step 1"
    " --patches_per_task 1 --train#trainer#max_epochs 3 --val_interval 3"
)
TINY_INFERENCE = "--network_def#features [2,2,4,4] --patch_size [24,16,16]"
# Files that the pages name and that no config is.
WRITTEN = ("benchmark.json", "datalist.json", "datastore_v2.json", "rows.json", "segmentation.json", "split.json")


def commands(page: Path) -> list[str]:
    """The lines of a page's code blocks, save those marked as a language: these need what a test does not have."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for language, block in fenced if not language for line in block.replace("\\\n", " ").splitlines()]


@pytest.fixture(scope="module")
def bundle(phantoms: Path, lesion_patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle's configs, with a folder CASES of generated cases without a datalist."""
    folder = tmp_path_factory.mktemp("docs") / "bundle"
    shutil.copytree(ROOT / "bundle" / "configs", folder / "configs")
    shutil.copy(lesion_patches, folder)
    for case in phantoms.iterdir():
        if case.is_dir():
            shutil.copytree(case, folder / "CASES" / case.name)
    return folder


def execute(command: str, folder: Path) -> None:
    program, *words = shlex.split(command)
    assert program == "torchrun" or (program == "python" and words.pop(0) == "-m"), command
    done = run_python(["torch.distributed.run", *words] if program == "torchrun" else words, folder)
    assert done.returncode == 0, f"{command}\n{done.stderr[-1500:]}"


def test_every_command_of_the_page_on_own_cases_runs_in_its_order(bundle: Path) -> None:
    for command in commands(ROOT / "bundle" / "docs" / "own_cases.md"):
        if "--tracking" in command and not optional_import("mlflow")[1]:
            continue  # its extra is not installed
        if "--folds" in command:
            command = command.replace("--folds 5", "--folds 2")
        if "--weights models/model.pt" in command:
            command = command.replace("models/model.pt", "trained/model.pt")
        if " segment " in command:
            command += f" {TINY_INFERENCE}"
        elif "train.json" in command:
            command += f" {TINY_TRAINING}"
        execute(command, bundle)
    for file in (
        "trained/model.pt",
        "trained0/model.pt",
        "tuned/model.pt",
        "beside/model.pt",
        "trained2/model.pt",
        "scored/report.html",
        "scored2/report.html",
    ):
        assert (bundle / file).is_file(), file
    assert len(list((bundle / "segmented").glob("*_seg.nii.gz"))) == 4


def test_every_command_of_the_page_on_segmenting_runs(small_bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms / "phantom_000", tmp_path / "CASES" / "phantom_000")
    files = [phantoms / "phantom_001" / f"phantom_001_{name}.nii.gz" for name in ("t1", "t1ce", "t2", "flair")]
    stacked = np.stack([np.asarray(nib.load(file).dataobj) for file in files], axis=-1)
    nib.save(nib.Nifti1Image(stacked, nib.load(files[0]).affine), tmp_path / "stacked.nii.gz")
    names = {"CASE_T1C": files[1], "CASE_T1": files[0], "CASE_T2": files[2], "CASE_FLAIR": files[3]}
    names["FOUR_CHANNELS"] = tmp_path / "stacked.nii.gz"
    for command in commands(ROOT / "bundle" / "docs" / "segment.md"):
        words = [str(names.get(word, word)) for word in shlex.split(command)]
        execute(shlex.join([*words, "--bundle", str(small_bundle)]), tmp_path)
    for output in ("segmented", "loose", "stacked"):
        assert len(list((tmp_path / output).glob("*_seg.nii.gz"))) == 1, output


def test_every_command_of_the_page_on_ablations_runs_in_its_order(bundle: Path) -> None:
    for command in commands(ROOT / "bundle" / "docs" / "ablation.md"):
        command = command.replace("--cases 160 --test 60", "--cases 3 --test 1 --size 40,40,32")
        command = command.replace("--seeds 0,1,2 --equal_time", "").replace("--folds 0,1,2", "--folds 2")
        command = command.replace("--variants mc3,omnet0,omnet,se,cga", "--variants omnet,cga")
        if " ablate " in command:
            command = re.sub(r'--network_def#features "[^"]*"|--train#trainer#max_epochs \d+', "", command)
            command += f" {TINY_TRAINING}"
        execute(command, bundle)
    for folder, rows in (("ABLATION", 10), ("FOLDS", 2)):
        lines = (bundle / folder / "table.md").read_text().splitlines()
        assert len([line for line in lines if line.startswith("| ")]) == 2 + rows


def test_every_file_and_config_that_the_pages_name_exists() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "bundle" / "docs").glob("*.md")):
        text = page.read_text()
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
        for name in re.findall(r"`(\w+\.json)`", text):
            assert name in WRITTEN or (ROOT / "bundle" / "configs" / name).is_file(), name
