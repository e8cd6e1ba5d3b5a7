"""Patches that grow during a run: small ones for many places at first, large ones for what only they show."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ignite.engine import Engine, Events

from omnet_monai.augmentation import BatchAugmentation
from omnet_monai.cropping import RandCropByTaskd
from omnet_monai.curriculum import Curriculum

__all__ = ["GrowingPatches"]

logger = logging.getLogger(__name__)


class GrowingPatches:
    """
    Train the first part of a run on smaller patches: many of them, of many places, fit into a step, while only a large
    one shows the rim of a large necrosis (ours, after what is known as progressive growing of the patch size).

    A run that does not go through the stages, as it was given its weights, has its full patches from the start.

    Args:
        curriculum: knows whether the run goes through the stages.
        crop: what cuts patches, set to the full size.
        augmentation: what they go through, set to the full size.
        small_size: the size that is trained on first, in voxels.
        small_samples: patches per task and case while they are small.
        until: the share of the run's epochs for which they are, in [0, 1]; 0 for full patches throughout.

    Raises:
        ValueError: if ``until`` is not in [0, 1].
    """

    def __init__(
        self,
        curriculum: Curriculum,
        crop: RandCropByTaskd,
        augmentation: BatchAugmentation,
        small_size: Sequence[int],
        small_samples: int | Sequence[int],
        until: float = 0.0,
    ) -> None:
        if not 0 <= until <= 1:
            raise ValueError(f"until must be in [0, 1], got {until}")
        self.curriculum, self.crop, self.augmentation, self.until = curriculum, crop, augmentation, until
        self.small = (small_size, small_samples)
        self.full = (crop.spatial_size, crop.num_samples)

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the size for the epoch that begins; the loader's workers are started after this."""
        small = self.curriculum.staged and engine.state.epoch - 1 < self.until * int(engine.state.max_epochs or 0)
        size, samples = self.small if small else self.full
        if tuple(size) != self.augmentation.spatial_size:
            logger.info(f"Patches of {'x'.join(map(str, size))} from epoch {engine.state.epoch} on.")
        self.augmentation.set_size(size)
        self.crop.set_size(size, samples)
