"""What should be looked at before the images of a case are segmented, each finding with the number that shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from monai.data import MetaTensor

from omnet_monai.measures import voxel_volume
from omnet_monai.regions import BACKGROUND, SEQUENCES
from omnet_monai.sequence_order import MARGIN, likely_order

__all__ = ["check_image"]

# All limits are ours. BraTS images have 1 mm, brains of 1.2 to 1.7 l, masks that agree to a Dice of 0.99 and more, and
# up to 0.2 % negative voxels from resampling.
SPACING = (0.5, 2.0)  # mm
EXTENT = (30.0, 500.0)  # mm
BRAIN = (600.0, 2200.0)  # ml
CUT = 0.1  # share of a side of the volume
OVERLAP = 0.95  # Dice
NEGATIVE = 0.005  # share of the brain
LEVELS = 64  # different intensities
BYTE = 255
LOOKED_AT = 200_000  # voxels

_DICE = "have a mean Dice WT/TC/ET of {} on nine cases instead of 0.85/0.74/0.78"
WITHOUT = {
    "t1": _DICE.format("0.84/0.75/0.79"),
    "t1c": _DICE.format("0.84/0.17/0.01") + ": no enhancing tumor is found, and hardly any core",
    "t2": _DICE.format("0.83/0.72/0.77"),
    "flair": _DICE.format("0.58/0.63/0.68") + ": much edema is missed",
}
"""What to expect without a sequence, as ``benchmarks/missing_sequences.py`` found on held-out cases."""


def check_image(image: MetaTensor, order: Sequence[str] = SEQUENCES) -> list[str]:
    """
    Check the four sequences of a case as they were read.

    Args:
        image: the sequences in the order of ``SEQUENCES``, background 0, shape ``(4, H, W, D)``; one that is missing is
            0 everywhere.
        order: the sequences in the order in which their files or channels were given, in which a finding names them.

    Returns:
        Findings, each ``"what: text with the number"``: spacing, brain, cropped, registration, normalized, negative,
        levels, order and missing. None of them is certain, and nothing found is no proof that all is well.

    Raises:
        ValueError: if no voxel is brain in all sequences, or the brain measures less than 3 or more than 50 cm.
    """
    volumes = {name: volume for name, volume in zip(SEQUENCES, np.asarray(image), strict=True) if volume.any()}
    masks = np.stack([volume != BACKGROUND for volume in volumes.values()] or [np.zeros(image.shape[1:], dtype=bool)])
    brain: np.ndarray = np.logical_or.reduce(masks)
    if not masks.all(0).any():
        raise ValueError("brain: a voxel must be other than 0 in all sequences, got none")
    spacing = [float(size) for size in image.pixdim]
    sides = [int(np.ptp(np.flatnonzero(np.any(brain, axis=axes)))) + 1 for axes in ((1, 2), (0, 2), (0, 1))]
    extent = max(side * size for side, size in zip(sides, spacing, strict=True))
    if not EXTENT[0] <= extent <= EXTENT[1]:
        rule = f"it must measure {EXTENT[0]:.0f} to {EXTENT[1]:.0f} mm"
        raise ValueError(f"brain: {rule}, got {extent:.1f} mm: is the affine in mm?")
    volume = float(brain.sum() * voxel_volume(image) / 1000)
    return [
        *_check_space(brain, spacing, volume),
        *_check_registration(dict(zip(volumes, masks, strict=True))),
        *(text for name, intensities in volumes.items() for text in _check_intensities(name, intensities)),
        *_check_missing(volumes),
        # Skull and background look like no sequence.
        *(_check_order(np.asarray(image), order) if volume <= BRAIN[1] and len(volumes) == len(SEQUENCES) else ()),
    ]


def _check_space(brain: np.ndarray, spacing: list[float], volume: float) -> Iterator[str]:
    if min(spacing) < SPACING[0] or max(spacing) > SPACING[1]:
        sizes = " x ".join(f"{size:.2f}" for size in spacing)
        yield f"spacing: {sizes} mm is far from 1 mm; the images are resampled, fine structures may be lost"
    if volume > BRAIN[1]:
        question = "is the skull stripped and the background 0? The order of the sequences was not checked"
        yield f"brain: {volume:.0f} ml are not 0, a brain has less; {question}"
        return
    if volume < BRAIN[0]:
        yield f"brain: {volume:.0f} ml are not 0, an adult's brain has more"
    shares = [np.take(brain, side, axis).mean() for axis in range(3) for side in (0, -1)]
    if max(shares) > CUT:
        yield f"cropped: {max(shares):.0%} of a side of the volume are brain; it may have been cut off there"


def _check_registration(masks: dict[str, np.ndarray]) -> Iterator[str]:
    sizes = {name: np.count_nonzero(mask) for name, mask in masks.items()}
    pairs = {
        (a, b): 2 * np.count_nonzero(masks[a] & masks[b]) / (sizes[a] + sizes[b]) for a, b in combinations(masks, 2)
    }
    (a, b), dice = min(pairs.items(), key=lambda item: item[1], default=(("", ""), 1.0))
    if dice < OVERLAP:
        yield f"registration: what is not 0 in {a} and {b} overlaps with a Dice of {dice:.2f}; are they co-registered?"


def _check_intensities(name: str, volume: np.ndarray) -> Iterator[str]:
    values = volume[volume != BACKGROUND]
    values = values[:: max(len(values) // LOOKED_AT, 1)]
    negative, mean, std = float((values < 0).mean()), float(values.mean()), float(values.std())
    if values.max() <= 1 and not negative:
        yield f"normalized: {name} has a maximum of {values.max():.2f}, it seems scaled to [0, 1]"
    elif negative > NEGATIVE and abs(mean) < 0.3 and 0.5 < std < 2:
        yield f"normalized: {name} has mean {mean:.2f} and standard deviation {std:.2f}, it seems to be z-scores"
    elif negative > NEGATIVE:
        yield f"negative: {negative:.1%} of {name} are below 0, magnitudes never are"
    levels = len(np.unique(values))
    if values.min() >= 0 and values.max() <= BYTE and not (values % 1).any():
        yield f"levels: {name} has whole numbers up to {values.max():.0f}; was it scaled and rounded to 8 bits?"
    elif levels < LEVELS:
        yield f"levels: {name} has {levels} different intensities; was it rounded after scaling?"


def _check_missing(volumes: dict[str, np.ndarray]) -> Iterator[str]:
    missing = [name for name in SEQUENCES if name not in volumes]
    if missing:
        rule = "taken for the mean of the brain; networks of the bundle's recipe, which learn to lack one,"
        expected = WITHOUT[missing[0]] if len(missing) == 1 else "were not tried without several"
        yield f"missing: {', '.join(missing)}, {rule} {expected}; the order of the others was not checked"


def _check_order(volumes: np.ndarray, given: Sequence[str]) -> Iterator[str]:
    try:
        order, margin = likely_order(volumes)
    except ValueError:  # too few voxels to tell
        return
    if margin > MARGIN:
        likely = [order[SEQUENCES.index(name)] for name in given]
        yield (
            f"order: given as {', '.join(given)} the images look like {', '.join(likely)}, whose score is higher by"
            f" {margin:.2f}; a wrong order gives a wrong result without an error"
        )
