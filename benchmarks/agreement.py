"""
Compare label maps of one case with another label map of it, such as the fusion of several, in the folder of a clone.

  python benchmarks/agreement.py FUSION LABEL_MAP...
"""

from __future__ import annotations

from pathlib import Path

import fire
import torch
from monai.data import MetaTensor

from omnet_monai.loading import read_label
from omnet_monai.measures import voxel_volume
from omnet_monai.metrics import dice
from omnet_monai.reading import read_file
from omnet_monai.regions import REGIONS, regions_from_classes
from omnet_monai.report import format_table


def main(reference: str, *label_maps: str) -> None:
    """
    Print the Dice of each label map to the reference, of regions that the reference has, and volumes in ml of all.

    Args:
        reference: label map, its codes 1 NCR/NET, 2 edema, 3 or 4 enhancing tumor.
        label_maps: others on the same grid.
    """
    array, affine = read_file("reference", Path(reference))
    files = [Path(file) for file in (reference, *label_maps)]
    names = [file.name.removesuffix(".gz").removesuffix(".nii") for file in files]
    masks = [regions_from_classes(read_label(file.name, file, None, array.shape, affine)) for file in files]
    voxel = voxel_volume(MetaTensor(masks[0], affine=torch.from_numpy(affine))) / 1000
    rows: list[list[str | float]] = [
        [name, *_scores(mask, masks[0]), *(f"{float(region.sum()) * voxel:.2f}" for region in mask)]
        for name, mask in zip(names, masks, strict=True)
    ]
    header = ["label map", *(f"Dice {region}" for region in REGIONS), *(f"{region}, ml" for region in REGIONS)]
    print(format_table(header, rows))


def _scores(masks: torch.Tensor, reference: torch.Tensor) -> list[str]:
    return [f"{dice(mask, true):.3f}" if true.any() else "-" for mask, true in zip(masks, reference, strict=True)]


if __name__ == "__main__":
    fire.Fire(main, name="python benchmarks/agreement.py")
