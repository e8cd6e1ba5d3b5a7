"""Transforms of OM-Net: labels to regions for scoring, regions to labels for saving, and the cropper of patches."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from functools import reduce
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor, PathLike
from monai.data import ImageWriter, MetaTensor, NibabelWriter
from monai.transforms import Invertd, InvertibleTransform, MapTransform

from omnet_monai.cropping import RandCropByTaskd
from omnet_monai.files import whole_file
from omnet_monai.reading import UNREADABLE
from omnet_monai.regions import (
    REGIONS,
    classes_from_codes,
    classes_from_regions,
    codes_from_classes,
    regions_from_classes,
)

__all__ = [
    "InvertToLabelsd",
    "LabelMapWriter",
    "LabelsToRegionsd",
    "MoveThresholdsd",
    "RandCropByTaskd",
    "RegionsToLabelsd",
    "case_name",
    "nonzero",
    "written_here",
]

DESCRIPTION = "research use only, not a medical device, non-commercial"
"""In the header of every file written, which has room for 79 characters, 24 of them for missing sequences."""


class MoveThresholdsd(MapTransform):
    """
    Move each region's threshold to 0.5, where every later step draws the line (ours): a network that was trained
    against bias fields is less sure of a new patient's tumor than of a training patient's.

    The odds of a region are divided by those of its threshold, in place: probabilities keep their order, and 0 and 1
    stay.

    Args:
        keys: keys of the region probabilities WT, TC, ET in [0, 1], shape ``(3, *spatial)``.
        thresholds: one for each region, in (0, 1); 0.5 leaves a region as it is.

    Raises:
        ValueError: if ``thresholds`` does not hold one number in (0, 1) for each region.
    """

    def __init__(self, keys: KeysCollection, thresholds: Sequence[float] = (0.5, 0.5, 0.5)) -> None:
        super().__init__(keys)
        if len(thresholds) != len(REGIONS) or not all(0 < threshold < 1 for threshold in thresholds):
            raise ValueError(f"thresholds must hold one number in (0, 1) for {', '.join(REGIONS)}, got {thresholds}")
        self.thresholds = tuple(thresholds)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Move each key's probabilities in place."""
        result = dict(data)
        for key in self.key_iterator(result):
            for probs, threshold in zip(result[key], self.thresholds, strict=True):
                if threshold != 0.5:
                    probs.div_((1 - probs).mul_(threshold / (1 - threshold)).add_(probs))
        return result


class RegionsToLabelsd(MapTransform):
    """
    Fuse region probabilities ``(3, *spatial)`` into one uint8 label map ``(1, *spatial)``, WT around TC around ET. A
    region is where its probability exceeds 0.5: other thresholds are moved there first, by :class:`MoveThresholdsd`.

    Args:
        keys: keys of the region probabilities.
        scheme: label scheme of the codes to write; the default's are 0, 1, 2, 3.
    """

    def __init__(self, keys: KeysCollection, scheme: str = "brats2023") -> None:
        super().__init__(keys)
        self.scheme = scheme

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each key's probabilities by its label map."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = codes_from_classes(classes_from_regions(result[key]), self.scheme)
        return result


class InvertToLabelsd(Invertd):
    """
    Bring region probabilities ``(3, *spatial)`` back to the grid their case came on, and fuse them there as
    :class:`RegionsToLabelsd` does. Where nothing was resampled they are fused first, to the same label map, as one
    channel is brought back faster.

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
        self.image_key = orig_keys

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each key's probabilities by a label map on the case's own grid."""
        if _may_be_resampled(data.get(self.image_key)):
            return self.to_labels(super().__call__(data))
        result = super().__call__(self.to_labels(data))
        return result | {key: result[key].to(torch.uint8) for key in self.key_iterator(result)}


def _may_be_resampled(image: Any) -> bool:
    """Tell whether the axes of a prepared image are more than its file's in another order and direction, or unknown."""
    original = image.meta.get("original_affine") if isinstance(image, MetaTensor) else None
    if original is None:
        return True
    turn = np.linalg.solve(np.asarray(original)[:-1, :-1], np.asarray(image.affine)[:-1, :-1])
    return not np.allclose(abs(turn), abs(turn).round().clip(max=1), rtol=0, atol=1e-4)


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
    Write NIfTI files for ``SaveImaged``, whole or not at all, never resampled, and only in place of one of its own.

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

    def write(self, filename: PathLike, verbose: bool = False, **kwargs: Any) -> None:
        """
        Write the file whole or not at all; ``verbose`` logs its name.

        Raises:
            ValueError: if there is a file of that name that is none of this writer's, such as the truth of a case.
        """
        if os.path.exists(filename) and not written_here(filename):
            raise ValueError(f"{filename} must not be replaced, as it was not written here: choose another folder")
        ImageWriter.write(self, filename, verbose)  # MONAI's line in the log, which is to name no temporary file
        with whole_file(filename) as file:
            super().write(file, verbose=False, **kwargs)


def written_here(path: PathLike) -> bool:
    """Tell whether a file is one of :class:`LabelMapWriter`, by the terms of use in its header."""
    try:
        return DESCRIPTION[:20] in str(nibabel.Nifti1Image.from_filename(path).header["descrip"])
    except UNREADABLE:
        return False


def nonzero(image: torch.Tensor) -> np.ndarray:
    """
    Mark voxels where any channel ``(C, *spatial)`` is not background, in a mask ``(1, *spatial)``: the ``select_fn`` of
    the brain crop, right for negative intensities too.
    """
    channels = image.cpu().numpy()  # in NumPy finding the box of a mask takes a third of the time
    return reduce(np.logical_or, (channel != 0 for channel in channels))[None]


def case_name(meta: Mapping[str, Any], saver: Any) -> dict[str, Any]:
    """Name saved files after their case instead of after its first sequence: the formatter for ``SaveImaged``."""
    return {"subject": f"{meta['case']}.nii", "idx": None}  # MONAI takes off what follows the last dot
