"""Transforms of OM-Net: patches per task, labels to regions for scoring, regions to labels for saving."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor, PathLike
from monai.data import MetaTensor, NibabelWriter
from monai.transforms import Invertd, InvertibleTransform, MapTransform, Randomizable, SpatialPad
from monai.utils import ensure_tuple_rep

from omnet_monai.files import whole_file
from omnet_monai.regions import (
    BACKGROUND,
    REGIONS,
    TASKS,
    classes_from_codes,
    classes_from_regions,
    codes_from_classes,
    regions_from_classes,
)

__all__ = [
    "InvertToLabelsd",
    "LabelMapWriter",
    "LabelsToRegionsd",
    "RandCropByTaskd",
    "RegionsToLabelsd",
    "case_name",
    "nonzero",
]

DESCRIPTION = "research use only, not a medical device; weights non-commercial"
"""In the header of every file written, which has room for 79 characters."""


class RandCropByTaskd(Randomizable):
    """
    Cut patches for each task, each centered on a random voxel of the region that the task samples in: the brain, the
    whole tumor, the tumor core (MICCAI 2018 / TIP 2020 papers; reconstructed, the release has no sampler).

    A case without core gives its task-3 patches to task 2, a case without tumor all its patches to task 1: each
    patch carries in ``task`` the index of the task whose region it was really drawn from. Near a border the patch is
    shifted inwards; a volume smaller than a patch is padded with zeros at its far ends.

    Args:
        spatial_size: patch size in voxels, one entry per spatial dimension.
        num_samples: patches per task, one number for all tasks or one for each.
        image_key: key of the image, background 0, shape ``(C, *spatial)``.
        label_key: key of the inner classes, shape ``(1, *spatial)``.

    Returns:
        A list of dictionaries of plain tensors, one per patch, with the keys ``image_key``, ``label_key`` and ``task``,
        grouped by the task they were asked for.

    Raises:
        ValueError: if ``num_samples`` is a sequence that does not hold one number per task.
    """

    def __init__(
        self,
        spatial_size: Sequence[int],
        num_samples: int | Sequence[int] = 2,
        image_key: str = "image",
        label_key: str = "label",
    ) -> None:
        self.spatial_size = tuple(spatial_size)
        self.num_samples = ensure_tuple_rep(num_samples, len(TASKS))
        self.image_key = image_key
        self.label_key = label_key
        self.pad = SpatialPad(self.spatial_size, method="end")

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Cut the patches of one case."""
        image, label = _plain(self.pad(data[self.image_key])), _plain(self.pad(data[self.label_key]))
        centers = _centers(image, label)
        patches: list[dict[Hashable, Any]] = []
        for wanted, number in enumerate(self.num_samples):
            task = max(task for task in range(wanted + 1) if len(centers[task]) or not task)
            for _ in range(number):
                window = (slice(None), *self._window_around(centers[task], label.shape[1:]))
                cut: dict[Hashable, Any] = {
                    self.image_key: image[window].clone(),
                    self.label_key: label[window].clone(),
                    "task": task,
                }
                patches.append(cut)
        return patches

    def _window_around(self, centers: torch.Tensor, shape: Sequence[int]) -> list[slice]:
        flat = int(centers[self.R.randint(len(centers))])
        starts = [
            min(max(int(center) - side // 2, 0), size - side)
            for center, side, size in zip(np.unravel_index(flat, shape), self.spatial_size, shape, strict=True)
        ]
        return [slice(start, start + side) for start, side in zip(starts, self.spatial_size, strict=True)]


class RegionsToLabelsd(MapTransform):
    """
    Fuse region probabilities ``(3, *spatial)`` into one uint8 label map ``(1, *spatial)``, WT around TC around ET.

    Args:
        keys: keys of the region probabilities.
        threshold: a region is where its probability exceeds this.
        scheme: label scheme of the codes to write; the default's are 0, 1, 2, 3.
    """

    def __init__(self, keys: KeysCollection, threshold: float = 0.5, scheme: str = "brats2023") -> None:
        super().__init__(keys)
        self.threshold = threshold
        self.scheme = scheme

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each key's probabilities by its label map."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = codes_from_classes(classes_from_regions(result[key], self.threshold), self.scheme)
        return result


class InvertToLabelsd(Invertd):
    """
    Bring region probabilities ``(3, *spatial)`` back to the grid their case came on, and fuse them there as
    :class:`RegionsToLabelsd` does.

    One transform, not two: MONAI Label scores unlabeled cases by the entropy of what its chain yields without
    ``Invertd``, which so is the probabilities.

    Args:
        keys: keys of the region probabilities.
        transform: the transforms to invert.
        orig_keys: key of the image that went through them.
        scheme: label scheme of the codes to write; the default's are 0, 1, 2, 3.
    """

    def __init__(
        self, keys: KeysCollection, transform: InvertibleTransform, orig_keys: str, scheme: str = "brats2023"
    ) -> None:
        super().__init__(keys, transform, orig_keys, nearest_interp=False)
        self.to_labels = RegionsToLabelsd(keys, scheme=scheme)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each key's probabilities by a label map on the case's own grid."""
        return self.to_labels(super().__call__(data))


class LabelsToRegionsd(MapTransform):
    """
    Split label maps ``(1, *spatial)`` into the boolean masks of WT, TC and ET, ``(3, *spatial)``.

    Args:
        keys: keys of the label maps.
        scheme: label scheme of their codes; the default's are the inner classes themselves.

    Raises:
        ValueError: for codes that the scheme does not know.
    """

    def __init__(self, keys: KeysCollection, scheme: str = "brats2023") -> None:
        super().__init__(keys)
        self.scheme = scheme

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each key's label map by its region masks."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = regions_from_classes(classes_from_codes(result[key], self.scheme))
        return result


class LabelMapWriter(NibabelWriter):
    """
    Write NIfTI files for ``SaveImaged``, whole or not at all, and never resampled.

    Even asked not to resample, MONAI 1.6.1 compares grids, takes the volume for a 2-D image in doing so, and fails
    where the first two axes of the affine alone are singular.
    """

    @classmethod
    def resample_if_needed(
        cls, data_array: NdarrayOrTensor, affine: NdarrayOrTensor | None = None, *args: Any, **kwargs: Any
    ) -> tuple[NdarrayOrTensor, NdarrayOrTensor | None]:
        """Leave the label map on the grid it is on."""
        return data_array, affine

    def set_metadata(self, meta_dict: Mapping | None = None, *args: Any, **kwargs: Any) -> None:
        """Keep what the header is to say."""
        super().set_metadata(meta_dict, *args, **kwargs)
        missing = (meta_dict or {}).get("missing")
        self.description = f"without {missing}; {DESCRIPTION}"[:79] if missing else DESCRIPTION

    def create_backend_obj(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # of the class in MONAI
        """Make the image, with the terms of use in its header."""
        image = super().create_backend_obj(*args, **kwargs)
        image.header["descrip"] = self.description
        return image

    def write(self, filename: PathLike, *args: Any, **kwargs: Any) -> None:
        """Write the file whole or not at all."""
        with whole_file(filename) as file:
            super().write(file, *args, **kwargs)


def nonzero(image: torch.Tensor) -> torch.Tensor:
    """Mark what is not background: the ``select_fn`` of the brain crop, right for negative intensities too."""
    return image != BACKGROUND


def case_name(meta: Mapping[str, Any], saver: Any) -> dict[str, Any]:
    """Name saved files after their case instead of after its first sequence: the formatter for ``SaveImaged``."""
    return {"subject": meta["case"], "idx": None}


def _centers(image: torch.Tensor, label: torch.Tensor) -> list[torch.Tensor]:
    """Flat indices of the voxels of each task's region; of the whole volume where the image is empty."""
    classes = label[0].flatten()
    tumor = classes.nonzero()[:, 0]  # the other regions are looked for in here alone
    brain = image.abs().sum(0).flatten().nonzero()[:, 0]
    centers = [brain if len(brain) else torch.arange(len(classes))]
    for task in TASKS[1:]:
        region = torch.tensor(REGIONS[str(task.sampled_in)], dtype=classes.dtype)
        centers.append(tumor[torch.isin(classes[tumor], region)])
    return centers


def _plain(image: torch.Tensor) -> torch.Tensor:
    return image.as_tensor() if isinstance(image, MetaTensor) else image
