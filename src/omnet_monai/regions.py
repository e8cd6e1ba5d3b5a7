"""The one table of labels, label schemes, regions and tasks; labels to regions and back as pure tensor functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = [
    "BACKGROUND",
    "NECROSIS",
    "EDEMA",
    "ENHANCING",
    "CLASS_NAMES",
    "REGIONS",
    "SCHEMES",
    "SEQUENCES",
    "TASKS",
    "Task",
    "classes_from_codes",
    "classes_from_regions",
    "codes_from_classes",
    "regions_from_classes",
    "tasks_named",
]

SEQUENCES = ("t1", "t1c", "t2", "flair")
"""The order of the input channels, everywhere inside."""

BACKGROUND, NECROSIS, EDEMA, ENHANCING = range(4)
CLASS_NAMES = ("background", "NCR/NET", "edema", "enhancing")

REGIONS = {"WT": (NECROSIS, EDEMA, ENHANCING), "TC": (NECROSIS, ENHANCING), "ET": (ENHANCING,)}
"""Regions and their classes, outermost first: WT (whole tumor) contains TC (core) contains ET (enhancing)."""

SCHEMES = {
    "brats2015": {0: BACKGROUND, 1: NECROSIS, 2: EDEMA, 3: NECROSIS, 4: ENHANCING},
    "brats2017": {0: BACKGROUND, 1: NECROSIS, 2: EDEMA, 4: ENHANCING},
    "brats2023": {0: BACKGROUND, 1: NECROSIS, 2: EDEMA, 3: ENHANCING, 4: BACKGROUND},  # 4: resection cavity
    "msd": {0: BACKGROUND, 1: EDEMA, 2: NECROSIS, 3: ENHANCING},
}
"""Codes of each label scheme and the class each stands for. The first code of a class is the one written."""

_WITHOUT_SCHEME = {0: BACKGROUND, 1: NECROSIS, 2: EDEMA, 3: ENHANCING, 4: ENHANCING}


@dataclass(frozen=True)
class Task:
    """
    One of the three tasks that OM-Net solves in one pass.

    Attributes:
        name: the paper's adjective.
        sampled_in: the region its own training patches are centered in, ``None`` for the brain.
        region: the region it yields.
        classes: the inner classes that its output channels 1, 2, ... stand for; every other class is channel 0.
    """

    name: str
    sampled_in: str | None
    region: str
    classes: tuple[int, ...]

    def channels_of(self, region: str) -> list[int]:
        """List the output channels whose probabilities add up to what this task knows of a region."""
        return [channel for channel, cls in enumerate(self.classes, start=1) if cls in REGIONS[region]]

    def target(self, label: torch.Tensor) -> torch.Tensor:
        """Turn a label map of inner classes, any shape, into this task's class indices (int64, same shape)."""
        target = torch.zeros_like(label, dtype=torch.int64)
        for channel, cls in enumerate(self.classes, start=1):
            target[label == cls] = channel
        return target


TASKS = (
    Task("coarse", None, "WT", classes=(NECROSIS, EDEMA, ENHANCING)),
    Task("refined", "WT", "TC", classes=(NECROSIS, EDEMA, ENHANCING)),
    Task("precise", "TC", "ET", classes=(ENHANCING,)),
)


def tasks_named(names: Sequence[str] | None = None) -> tuple[Task, ...]:
    """
    Look tasks up.

    Args:
        names: some of "coarse", "refined", "precise", in this order; ``None`` for all.

    Raises:
        ValueError: for no name, another one, or another order.
    """
    tasks = TASKS if names is None else tuple(task for task in TASKS if task.name in names)
    if names is not None and (not names or [task.name for task in tasks] != list(names)):
        known = ", ".join(task.name for task in TASKS)
        raise ValueError(f"tasks must be a list of some of {known} in this order, as [coarse,refined], got {names!r}")
    return tasks


def classes_from_codes(label: torch.Tensor, scheme: str | None = None) -> torch.Tensor:
    """
    Turn the codes of a label scheme into the inner classes 0-3.

    Args:
        label: label map with integral values, any shape.
        scheme: a key of ``SCHEMES``; ``None`` for a label of unknown origin, in which 3 and 4 both mean enhancing.

    Returns:
        Inner classes, uint8, same shape.

    Raises:
        ValueError: for an unknown scheme, for codes the scheme does not know, and for a label without a scheme
            that holds both 3 and 4.
    """
    if scheme is not None and scheme not in SCHEMES:
        raise ValueError(f"label scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    table = _WITHOUT_SCHEME if scheme is None else SCHEMES[scheme]
    found = [float(value) for value in torch.unique(label)]
    unknown = [value for value in found if value not in table]
    if unknown:
        raise ValueError(f"label codes of {scheme or 'no scheme'} must be among {sorted(table)}, got {unknown}")
    if scheme is None and {3.0, 4.0} <= set(found):
        raise ValueError("a label without a scheme must not hold both 3 and 4: name its scheme")
    classes = torch.zeros_like(label, dtype=torch.uint8)
    for code, cls in table.items():
        if cls != BACKGROUND:
            classes[label == code] = cls
    return classes


def codes_from_classes(label: torch.Tensor, scheme: str = "brats2023") -> torch.Tensor:
    """
    Turn inner classes into the codes of a label scheme, the inverse of :func:`classes_from_codes`.

    Args:
        label: inner classes 0-3, any shape.
        scheme: a key of ``SCHEMES``. The default writes 0, 1, 2, 3, without a gap, which 3D Slicer shows as they are.

    Returns:
        Codes, uint8, same shape.

    Raises:
        ValueError: for an unknown scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"label scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    written = {cls: code for code, cls in reversed(SCHEMES[scheme].items())}  # reversed: a class keeps its first code
    codes = torch.zeros_like(label, dtype=torch.uint8)
    for cls, code in written.items():
        if code:
            codes += (label == cls).to(torch.uint8) * code  # writing through a mask takes ten times as long
    return codes


def regions_from_classes(label: torch.Tensor) -> torch.Tensor:
    """
    Split a label map of inner classes into the masks of WT, TC and ET.

    Args:
        label: inner classes, shape ``(1, *spatial)``.

    Returns:
        Boolean masks, shape ``(3, *spatial)``.
    """
    masks = [torch.zeros_like(label[0], dtype=torch.bool) for _ in REGIONS]
    for mask, classes in zip(masks, REGIONS.values(), strict=True):
        for cls in classes:
            mask |= label[0] == cls
    return torch.stack(masks)


def classes_from_regions(probs: torch.Tensor) -> torch.Tensor:
    """
    Fuse region probabilities into one label map: tumor where WT says so, inside it core where TC says so, inside
    that enhancing where ET says so. This nesting is ours; the paper's own fusion was not published as code.

    Args:
        probs: probabilities of WT, TC, ET in [0, 1], shape ``(3, *spatial)``; a region is where its own exceeds 0.5.

    Returns:
        Inner classes, uint8, shape ``(1, *spatial)``.

    Raises:
        ValueError: if there are not three channels.
    """
    if len(probs) != len(REGIONS):
        raise ValueError(f"region probabilities must have {len(REGIONS)} channels, got shape {tuple(probs.shape)}")
    whole, core, enhancing = (probs > 0.5).to(torch.uint8).split(1)
    core = core * whole
    enhancing = enhancing * core
    return EDEMA * (whole - core) + NECROSIS * (core - enhancing) + ENHANCING * enhancing
