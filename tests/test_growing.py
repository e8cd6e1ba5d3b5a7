"""Patches that grow: small ones for the first part of a run that goes through the stages, else none."""

from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Engine

from omnet_monai.augmentation import BatchAugmentation
from omnet_monai.curriculum import Curriculum
from omnet_monai.growing import GrowingPatches
from omnet_monai.transforms import RandCropByTaskd


def run_sizes(until: float, epochs: int, staged: bool = True) -> list[tuple[tuple[int, ...], int]]:
    """Size and number of the patches that each epoch of a run would train on."""
    curriculum = Curriculum()
    curriculum.staged = staged
    crop, augmentation = RandCropByTaskd((12, 12, 6), num_samples=1, margin=0.2), BatchAugmentation((12, 12, 6))
    handler = GrowingPatches(curriculum, crop, augmentation, (6, 6, 3), 3, until)
    case = {"image": torch.ones(4, 20, 20, 20), "label": torch.zeros(1, 20, 20, 20, dtype=torch.uint8)}
    sizes = []

    def step(engine: Engine, _: object) -> None:
        patches = crop(case)
        image, _ = augmentation(torch.stack([patch["image"] for patch in patches]), patches[0]["label"][None])
        sizes.append((tuple(image.shape[2:]), len(patches) // 3))

    engine = Engine(step)
    handler.attach(engine)
    engine.run([0], max_epochs=epochs)
    return sizes


def test_patches_are_small_for_their_share_of_the_epochs() -> None:
    assert run_sizes(0.75, 4) == [((6, 6, 3), 3)] * 3 + [((12, 12, 6), 1)]


@pytest.mark.parametrize(("until", "staged"), [(0.0, True), (1.0, False)], ids=["switched off", "weights were given"])
def test_patches_are_full_from_the_start(until: float, staged: bool) -> None:
    assert run_sizes(until, 2, staged) == [((12, 12, 6), 1)] * 2


def test_a_change_of_size_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run_sizes(0.5, 4)
    told = [message for message in caplog.messages if message.startswith("Patches of")]
    assert told == ["Patches of 6x6x3 from epoch 1 on.", "Patches of 12x12x6 from epoch 3 on."]


def test_a_share_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"until must be in \[0, 1\], got 2"):
        run_sizes(2, 1)
