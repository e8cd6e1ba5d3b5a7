"""
Segment one case in a process of its own, and tell its peak memory and time, in the folder of a clone.

  python benchmarks/memory.py CASE OUTPUT
  python benchmarks/memory.py CASE OUTPUT --shape 512,512,300    the case resampled to so many voxels
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import fire
import nibabel
import numpy as np
from scipy import ndimage

from omnet_monai.datalist import read_images
from omnet_monai.regions import SEQUENCES


def main(case: str, output: str, shape: tuple[int, int, int] | None = None) -> None:
    """
    Segment and tell.

    Args:
        case: folder of one case.
        output: folder for everything, which must not exist.
        shape: voxels along each axis to resample the case to, in the space it fills.
    """
    folder, image = Path(output), read_images(case)[0]
    (folder / "resampled").mkdir(parents=True)
    if shape:
        for name, file in zip(SEQUENCES, image["image"], strict=True):
            nibabel.save(_resample(nibabel.load(file), shape), folder / "resampled" / f"resampled_{name}.nii")
    source, start = str(folder / "resampled") if shape else case, time.monotonic()
    words = ["-m", "omnet_monai", "segment", source, "--output", str(folder / "segmented")]
    subprocess.run([sys.executable, *words], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # of kB
    print(f"{peak:.2f} GiB at the peak, {time.monotonic() - start:.0f} s, start of the program included")


def _resample(image: nibabel.Nifti1Image, shape: tuple[int, int, int]) -> nibabel.Nifti1Image:
    """Repeat or leave out voxels of an image, which needs no memory to speak of."""
    factors = np.divide(shape, image.shape)
    array = ndimage.zoom(np.asarray(image.dataobj), factors, order=0, grid_mode=True, mode="nearest")
    return nibabel.Nifti1Image(array, image.affine @ np.diag([*(1 / factors), 1]))


if __name__ == "__main__":
    fire.Fire(main, name="python benchmarks/memory.py")
