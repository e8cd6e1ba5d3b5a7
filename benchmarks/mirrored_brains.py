"""
Make tumor-free brains of real tissue: the half without tumor of each case, beside its own mirror image.

  python benchmarks/mirrored_brains.py DATALIST FOLDER [--cases NAME,NAME]

FOLDER gets a case folder for each, its files named as BraTS names them, an empty label map, and a datalist.json with
the case's fold, so that the network that has not seen the patient can be scored on it:

  python -m monai.bundle run --config_file "['configs/train.json','configs/evaluate.json']" --dataset_dir FOLDER \
    --ckpt_dir trained0 --output_dir mirrored --datalist_key training --fold 0

All tumor that it finds is false: the column "false (ml)" of WT.
"""

from __future__ import annotations

import json
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
from monai.transforms import Compose, Orientationd

from omnet_monai.datalist import read_cases
from omnet_monai.files import whole_file
from omnet_monai.loading import LoadCased

SUFFIXES = ("t1", "t1ce", "t2", "flair", "seg")

TUMOR_ACROSS = 0.01
"""Share of the tumor that may lie across the middle; with more, neither half is free of it."""


def main(datalist: str, folder: str, cases: str | tuple[str, ...] = ()) -> None:
    """
    Mirror the cases of a data list's training section.

    Args:
        datalist: the data list.
        folder: where the brains go.
        cases: names of the cases, all by default.
    """
    wanted = [cases] if isinstance(cases, str) else list(cases)
    entries = []
    for case in read_cases(datalist, "training"):
        if wanted and case["case"] not in wanted:
            continue
        try:
            entries.append(_write(case, Path(folder)))
        except ValueError as error:
            print(f"left out: {error}")
    with whole_file(Path(folder) / "datalist.json") as part:
        part.write_text(json.dumps({"training": entries}, indent=2), encoding="utf-8")


def middle(brain: np.ndarray) -> int:
    """Return twice the index along the first axis of the plane about which a brain is most like its mirror image."""
    centers = range(int(0.8 * len(brain)), int(1.2 * len(brain)))
    return max(centers, key=lambda twice: int((brain & _mirrored(brain, twice)).sum()))


def _mirrored(volume: np.ndarray, twice: int) -> np.ndarray:
    """Mirror a volume about the plane ``twice / 2`` of its first axis; what comes from beyond its ends is 0."""
    source = twice - np.arange(len(volume))
    inside = (source >= 0) & (source < len(volume))
    return volume[np.where(inside, source, 0)] * inside.reshape(-1, *[1] * (volume.ndim - 1)).astype(volume.dtype)


def _write(case: dict, folder: Path) -> dict:
    prepare = Compose([LoadCased(), Orientationd(["image", "label"], axcodes="LPS", labels=None)])
    data = prepare(case)
    image, tumor = np.moveaxis(data["image"].numpy(), 0, -1), data["label"][0].numpy() > 0
    twice = middle(image.any(-1))
    low = np.arange(len(image)) < twice / 2
    shares = [tumor[side].sum() / max(tumor.sum(), 1) for side in (low, ~low)]
    if min(shares) > TUMOR_ACROSS:
        raise ValueError(f"{case['case']}: the tumor lies on both sides, {min(shares):.1%} of it on the smaller")
    healthy = low if shares[0] < shares[1] else ~low
    image = np.where(healthy[:, None, None, None], image, _mirrored(image, twice))
    name, affine = f"{case['case']}_mirrored", data["image"].affine.numpy()
    (folder / name).mkdir(parents=True, exist_ok=True)
    volumes = [*np.moveaxis(image, -1, 0).astype(np.float32), np.zeros(image.shape[:3], np.uint8)]
    for suffix, volume in zip(SUFFIXES, volumes, strict=True):
        nib.save(nib.Nifti1Image(volume, affine), folder / name / f"{name}_{suffix}.nii.gz")
    files = [f"{name}/{name}_{suffix}.nii.gz" for suffix in SUFFIXES]
    print(f"{name}: tumor on the mirrored side {min(shares):.2%}, middle {twice / 2:g} of {len(image)}")
    own = {key: case[key] for key in ("patient", "fold") if key in case}
    return {"case": name, **own, "image": files[:4], "label": files[4], "scheme": "brats2017"}


if __name__ == "__main__":
    fire.Fire(main, name="python benchmarks/mirrored_brains.py")
