"""Scores on lesion patches of patients that training left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from omnet_monai.lesions import LesionPatches


@pytest.fixture
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("lesion_patches")


def saved(folder: Path) -> Path:
    """Twelve patients with a patch each, a brain of 1 with a cube of core that enhances in every second one."""
    label = np.zeros((12, 8, 8, 8), np.uint8)
    label[:, 1:7, 1:7, 1:7] = np.where(np.arange(12) % 2, 4, 1)[:, None, None, None]
    image = np.ones((12, 4, 8, 8, 8), np.int8)
    patients = np.array([f"patient_{number:02}" for number in range(12)])
    path = folder / "lesions.npz"
    np.savez(path, image=image, label=label, inside=label < 5, patient=patients, scale=np.float32(1))
    return path


def test_the_patients_drawn_are_listed_after_those_that_are_left_out_anyway(script: ModuleType, tmp_path: Path) -> None:
    always = script._config()["lesions_exclude"]
    listed = json.loads(script.patients(str(saved(tmp_path)), number=5))
    assert listed[: len(always)] == always
    assert len(set(listed) - set(always)) == 5
    assert listed == json.loads(script.patients(str(saved(tmp_path)), number=5))
    assert listed != json.loads(script.patients(str(saved(tmp_path)), number=5, seed=8))


def test_only_patients_held_out_are_scored_by_region_and_together(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AllTumor(nn.Module):
        """Finds tumor, core and enhancing tumor everywhere; says how often it was asked."""

        asked = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            AllTumor.asked += 1
            return torch.ones_like(x[:, :3])

    parser = {"device": "cpu", "network": AllTumor(), "inferer": lambda inputs, network: network(inputs)}
    parsed = type("Parser", (), {"get_parsed_content": lambda self, name: parser[name]})()
    monkeypatch.setattr(script, "inference_config", lambda root, overrides: parsed)
    monkeypatch.setattr(script, "load_weights", lambda network, path: None)
    file = saved(tmp_path)
    held_out = json.loads(script.patients(str(file), number=5))[-5:]
    enhancing = sum(int(patient[-2:]) % 2 for patient in held_out)
    header, row = script.score(str(file), "model.pt", number=5).splitlines()
    assert AllTumor.asked == 5
    volume, tumor = 15 * 15 * 10, int((LesionPatches(file, [1.875, 1.875, 1.211])[0]["label"] > 0).sum())
    alone, together = (2 * n * tumor / (n * tumor + all_of * volume) for n, all_of in ((1, 1), (enhancing, 5)))
    assert header.split() == ["weights", "WT", "mean", "TC", "mean", "ET", "mean", "WT", "TC", "ET"]
    # ET is scored where there is some, and counts everywhere in the Dice of all patches together.
    expected = [alone] * 5 + [together]
    assert [float(score) for score in row.split()[1:]] == pytest.approx(expected, abs=6e-4)


def test_a_region_that_no_patch_has_enough_of_has_no_mean(script: ModuleType) -> None:
    masks = torch.zeros(3, 8, 8, 8, dtype=torch.bool)
    assert math.isnan(script._mean_dice([(masks, masks)], 0))
    assert script._mean_dice([(~masks, ~masks), (masks, masks)], 0) == 1
