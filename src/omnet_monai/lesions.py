"""Small patches around lesions of many patients, as training cases beside a few whole brains."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from omnet_monai.datalist import read_cases
from omnet_monai.files import read_object
from omnet_monai.regions import CLASS_NAMES, classes_from_codes

__all__ = ["LesionPatches", "held_out_patients"]

logger = logging.getLogger(__name__)


def held_out_patients(datalist: str | Path, fold: int | None = None) -> list[str]:
    """
    Name the patients that training must not see: of the fold held out and of the test section, if there is one.

    Args:
        datalist: path of the data list's JSON file.
        fold: the fold to hold out, ``None`` for none.

    Returns:
        Names of patients and of their cases, as far as the entries tell them.

    Raises:
        ValueError: if the file does not exist, a case of it cannot be read, or no case is in the fold.
    """
    cases = read_cases(datalist, fold=fold, held_out=True)
    if isinstance(read_object("datalist", Path(datalist)).get("test"), list):
        cases += read_cases(datalist, "test")
    return sorted({str(case[key]) for case in cases for key in ("patient", "case") if key in case})


class LesionPatches(Dataset):
    """
    Lesion patches of one ``.npz`` file, each brought to 1 mm as a prepared case for ``RandCropByTaskd``.

    The file holds N patches cut from volumes that were z-scored inside the brain: ``image`` ``(N, C, *spatial)``,
    integers to multiply by ``scale``, in the order T1, T1c, T2, FLAIR, background 0; ``label`` ``(N, *spatial)``, codes
    of ``scheme``; ``inside`` ``(N, *spatial)``, False beyond the volume's end; ``patient`` ``(N,)``.

    Args:
        path: the file.
        spacing: size of its voxels in mm, one entry per spatial dimension.
        exclude: patients whose patches are left out, such as those that a fold holds out.
        scheme: label scheme of its codes.

    Raises:
        ValueError: if an array is missing, or the arrays differ in their number of patches or in their shape.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        spacing: Sequence[float],
        exclude: Sequence[str] = (),
        scheme: str = "brats2017",
    ) -> None:
        with np.load(path) as file:
            missing = {"image", "label", "inside", "patient", "scale"} - set(file.files)
            if missing:
                raise ValueError(f"{path} must hold the arrays {', '.join(sorted(missing))}, it has {file.files}")
            image, label, inside, patient = (file[name] for name in ("image", "label", "inside", "patient"))
            self.scale = float(file["scale"])
        if not image[:, 0].shape == label.shape == inside.shape or len(patient) != len(image):
            raise ValueError(
                f"{path}: image {image.shape}, label {label.shape}, inside {inside.shape} and patient {patient.shape} "
                "must hold the same patches of one shape"
            )
        patient = patient.astype(str)  # numbers or bytes would equal no name, and nobody be left out
        kept = ~np.isin(patient, list(map(str, exclude)))
        left_out = ", ".join(sorted(set(patient[~kept].tolist()))) or "nobody"
        logger.info(f"{kept.sum()} lesion patches, {(~kept).sum()} left out: of {left_out}.")
        self.image, self.label, self.inside = image[kept], label[kept], inside[kept]
        self.size = [round(side * mm) for side, mm in zip(label.shape[1:], spacing, strict=True)]
        self.scheme = scheme

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        """Return ``image`` ``(C, *spatial)`` and ``label``, the inner classes ``(1, *spatial)``, both float16."""
        image = self.scale * torch.from_numpy(self.image[position]).float()
        inside = torch.from_numpy(self.inside[position])
        classes = classes_from_codes(torch.from_numpy(self.label[position]), self.scheme).long()
        shares = F.one_hot(classes, len(CLASS_NAMES)).movedim(-1, 0).float()
        brain = (image.any(0) & inside)[None].float()
        image, shares, brain = self._resampled(torch.cat([image, shares, brain])).split([len(image), len(shares), 1])
        brain = brain > 0.5
        label = shares.max(0, keepdim=True).indices * brain  # argmax takes seven times as long
        return {"image": (image * brain).half(), "label": label.half()}

    def _resampled(self, volumes: torch.Tensor) -> torch.Tensor:
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(self.size)]
        return F.interpolate(volumes[None], size=self.size, mode=mode)[0]
