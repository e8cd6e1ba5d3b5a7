"""nnU-Net v2 as an entrant of race.py: its own plan, trainer and prediction, for a given time."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from filelock import FileLock
from monai.utils import optional_import

from omnet_monai.budget import clock
from omnet_monai.datalist import read_cases, read_scored_cases
from omnet_monai.files import keep_settings, sha256
from omnet_monai.inferers import default_device, has_bfloat16
from omnet_monai.loading import LoadCased
from omnet_monai.scoring import score

DATASET = "Dataset001_BrainTumor"

DESCRIPTION = {
    "channel_names": {"0": "T1", "1": "T1c", "2": "T2", "3": "FLAIR"},
    # Regions, as nnU-Net trains BraTS: of a voxel in several of them, the last one's code is written.
    "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [1, 3], "enhancing tumor": [3]},
    "regions_class_order": [2, 1, 3],
    "file_ending": ".nii",
}


def require() -> None:
    """
    Raises:
        ValueError: if nnU-Net is not installed.
    """
    if not optional_import("nnunetv2")[1]:
        raise ValueError("the entrant nnunet needs nnU-Net v2: pip install nnunetv2")


def race(
    folder: Path,
    datalist: Path,
    section: str,
    fold: int | None,
    minutes: float,
    settings: dict[str, Any],
    out: Path,
) -> tuple[int, float]:
    """
    Train the plan "3d_fullres" for a given time, and score what it predicts, mirrored.

    The learning rate falls through nnU-Net's own epochs as time passes, and none of it is spent on validation. An
    interrupted training begins anew.

    Args:
        folder: for the cases in nnU-Net's layout, shared by all trainings on a data list.
        datalist: JSON file that lists the cases.
        section: list to score.
        fold: the fold to score, ``None`` to train on all of the training section.
        minutes: training time.
        settings: attributes of the trainer to set.
        out: for results; label maps and scores go to its folder ``scored``.

    Returns:
        Steps that it was trained for, and how many seconds they took.
    """
    os.environ.update(
        nnUNet_raw=str(folder / "raw"), nnUNet_preprocessed=str(folder / "ready"), nnUNet_results=str(out)
    )
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        keep_settings(folder / "settings.json", {"datalist_sha256": sha256(datalist)})
        _prepare(folder, datalist)
    os.environ.update(nnUNet_compile="false")
    if not torch.cuda.is_available():
        os.environ.update(nnUNet_n_proc_DA="0")  # patches are cut in the process whose time counts
    trainer = _trainer(fold, settings)
    trainer.initialize()
    trainer.on_train_start()
    steps, seconds = _train(trainer, 60 * minutes)
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if hasattr(loader, "_finish"):
            loader._finish()
    cases = read_scored_cases(datalist, section, fold)
    _predict(trainer, cases, out)
    score(str(out / "scored"), str(datalist), section, fold)
    return steps, seconds


def _prepare(folder: Path, datalist: Path) -> None:
    """Write the training section in nnU-Net's layout, and let it plan and preprocess, unless that is done."""
    splits = folder / "ready" / DATASET / "splits_final.json"
    if splits.is_file():
        return
    raw = folder / "raw" / DATASET
    cases = read_cases(datalist, "training")
    for case in cases:
        _write_case(case, raw / "imagesTr", raw / "labelsTr")
    (raw / "dataset.json").write_text(json.dumps({**DESCRIPTION, "numTraining": len(cases)}), encoding="utf-8")
    plan = importlib.import_module("nnunetv2.experiment_planning.plan_and_preprocess_api")
    plan.extract_fingerprints([1], num_processes=os.cpu_count())
    plan.plan_experiments([1])
    plan.preprocess([1], configurations=("3d_fullres",), num_processes=[os.cpu_count()])
    splits.write_text(json.dumps(_splits(cases)), encoding="utf-8")


def _splits(cases: list[dict[str, Any]]) -> list[dict[str, list[str]]]:
    """Split cases as nnU-Net reads it: by place in the list, so that fold 2 is the third, whichever folds there are."""
    numbers = [case["fold"] for case in cases if case.get("fold") is not None]
    return [
        {
            "train": [case["case"] for case in cases if case.get("fold") != fold],
            "val": [case["case"] for case in cases if case.get("fold") == fold],
        }
        for fold in range(max(numbers, default=-1) + 1)
    ]


def _write_case(case: dict[Any, Any], images: Path, labels: Path | None) -> list[str]:
    """Write a case's sequences, and its inner classes if asked for, one file each; return those of the sequences."""
    data = LoadCased()(case)
    images.mkdir(parents=True, exist_ok=True)
    affine = data["image"].affine.numpy()
    files = [str(images / f"{case['case']}_{channel:04d}.nii") for channel in range(len(data["image"]))]
    for file, volume in zip(files, data["image"].numpy(), strict=True):
        nib.save(nib.Nifti1Image(volume.astype(np.float32), affine), file)
    if labels is not None:
        labels.mkdir(parents=True, exist_ok=True)
        classes = data["label"][0].numpy().astype(np.uint8)
        nib.save(nib.Nifti1Image(classes, affine), labels / f"{case['case']}.nii")
    return files


def _trainer(fold: int | None, settings: dict[str, Any]) -> Any:
    get = importlib.import_module("nnunetv2.run.run_training").get_trainer_from_args
    place = "all" if fold is None else fold
    trainer = get(DATASET, "3d_fullres", place, device=torch.device(default_device()))
    for name, value in settings.items():
        setattr(trainer, name, value)
    return trainer


def _train(trainer: Any, seconds: float) -> tuple[int, float]:
    """Train for so many seconds, as a budget counts them; return the steps, and the seconds they took."""
    bfloat16 = trainer.device.type == "cpu" and has_bfloat16("cpu")  # nnU-Net casts on a GPU by itself
    start, steps, passed = clock(), 0, 0.0
    while passed < seconds:
        trainer.current_epoch = int(trainer.num_epochs * passed / seconds)
        trainer.on_train_epoch_start()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            trainer.train_step(next(trainer.dataloader_train))
        steps, passed = steps + 1, clock() - start
    return steps, passed


def _predict(trainer: Any, cases: list[dict[str, Any]], out: Path) -> None:
    """Write the label maps of cases to ``out/scored``."""
    trainer.set_deep_supervision_enabled(False)
    kind = importlib.import_module("nnunetv2.inference.predict_from_raw_data").nnUNetPredictor
    on_gpu = trainer.device.type == "cuda"
    predictor = kind(perform_everything_on_device=on_gpu, device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    (out / "scored").mkdir(parents=True, exist_ok=True)
    for case in cases:
        files = _write_case(case, out / "images", None)
        predictor.predict_from_files_sequential([files], [str(out / "scored" / case["case"])])
        for file in files:
            Path(file).unlink()
