"""
Segment a case once or many times over, in one process, and tell its peak memory and time, in the folder of a clone.

  python benchmarks/memory.py CASE OUTPUT
  python benchmarks/memory.py CASE OUTPUT --shape 512,512,300    the case resampled to so many voxels
  python benchmarks/memory.py CASE OUTPUT --number 32            the case as a batch of so many
"""

from __future__ import annotations

import csv
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fire
import nibabel
import numpy as np
from scipy import ndimage

from omnet_monai.datalist import read_images
from omnet_monai.layouts import EXTENSIONS
from omnet_monai.regions import SEQUENCES


def main(case: str, output: str, shape: tuple[int, int, int] | None = None, number: int = 1) -> None:
    """
    Segment and tell.

    Args:
        case: folder of one case, with a file for each sequence.
        output: folder for everything, which must not exist.
        shape: voxels along each axis to resample the case to, in the space it fills.
        number: how often to segment it, as a batch of cases.
    """
    folder, files = Path(output), dict(zip(SEQUENCES, read_images(case)[0]["image"], strict=True))
    for copy in (f"case{place}" for place in range(number)):
        (folder / "cases" / copy).mkdir(parents=True)
        for name, file in files.items():
            target = folder / "cases" / copy / f"{copy}_{name}"
            if shape:
                nibabel.save(_resample(file, shape), f"{target}.nii")
            else:
                shutil.copy(file, f"{target}{next(end for end in EXTENSIONS if file.endswith(end))}")
    start = time.monotonic()
    words = ["-m", "omnet_monai", "segment", str(folder / "cases"), "--output", str(folder / "segmented")]
    subprocess.run([sys.executable, *words], check=True)
    took = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # of kB
    with open(folder / "segmented" / "segmentation.csv", newline="", encoding="utf-8") as table:
        each = [float(row["seconds"]) for row in csv.DictReader(table)]
    print(f"{peak:.2f} GiB at the peak; {took:.0f} s, {np.mean(each):.2f} s a case without the start of the program")


def _resample(file: str, shape: tuple[int, int, int]) -> nibabel.Nifti1Image:
    """Repeat or leave out voxels of an image, which needs no memory to speak of."""
    image = nibabel.Nifti1Image.from_filename(file)
    factors = np.divide(shape, image.shape)
    array = ndimage.zoom(np.asarray(image.dataobj), factors, order=0, grid_mode=True, mode="nearest")
    return nibabel.Nifti1Image(array, image.affine @ np.diag([*(1 / factors), 1]))


if __name__ == "__main__":
    fire.Fire(main, name="python benchmarks/memory.py")
