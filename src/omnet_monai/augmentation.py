"""Augmentation of a whole batch of patches at once, on the device they are trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F

__all__ = ["BatchAugmentation"]

CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}


@dataclass
class BatchAugmentation:
    """
    Turn, scale, mirror, blur and re-weigh each patch of a batch on its own, and take a sequence from some (ours; the
    release shows no augmentation).

    MONAI's transforms take one patch after the other on the CPU, where a GPU waits for them; these are a few tensor
    operations for all patches together. Their random numbers are those of torch's CPU generator, on every device.

    Args:
        spatial_size: size of the patches that are returned, in voxels, one entry per spatial dimension. Patches may
            come larger, so that a turned one is cut from tissue; where it reaches beyond them it is background.
        affine_prob: probability of turning and scaling a patch, in [0, 1].
        rotation: largest angle in radians, either way, in each plane of two axes, in the order of
            ``itertools.combinations``; one number for all.
        zoom: each side of a patch is cut from tissue that is longer or shorter by at most this share, in [0, 1): 0.2
            stretches tissue by up to 25 % and shrinks it by up to 17 %.
        flip_prob: probability of mirroring a patch along an axis, for each axis, in [0, 1].
        blur_prob: probability of blurring a sequence of a patch, each on its own, as one acquired in coarse or thick
            slices is, in [0, 1].
        blur: largest standard deviation of that blur in voxels, drawn for each axis anew.
        gamma: the gray values of each sequence, between its least and its greatest in the patch's brain, are raised to
            a power between 1 / (1 + gamma) and 1 + gamma; 0 leaves them as they are.
        scale: each sequence is multiplied by 1 plus at most this, either way.
        shift: to each sequence is added at most this, either way, inside the brain; the unit is the standard deviation
            that normalization has made 1. One number for all, or one for each sequence.
        drop_prob: probability that a patch loses one of its sequences, drawn anew, which is then 0 throughout as a
            missing one is at inference, in [0, 1].

    Raises:
        ValueError: for a probability or a zoom outside its range, for a negative ``blur`` or ``gamma``, and for a
            ``rotation`` of another number of planes.
    """

    spatial_size: Sequence[int]
    affine_prob: float = 0.0
    rotation: float | Sequence[float] = 0.0
    zoom: float = 0.0
    flip_prob: float = 0.5
    blur_prob: float = 0.0
    blur: float = 0.0
    gamma: float = 0.0
    scale: float = 0.0
    shift: float | Sequence[float] = 0.0
    drop_prob: float = 0.0

    def __post_init__(self) -> None:
        for name in ("affine_prob", "flip_prob", "blur_prob", "drop_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.zoom < 1:
            raise ValueError(f"zoom must be in [0, 1), got {self.zoom}")
        for name in ("blur", "gamma"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        self.planes = list(combinations(range(len(self.spatial_size)), 2))
        self.angles = torch.as_tensor(self.rotation, dtype=torch.float32)
        if self.angles.shape not in ((), (len(self.planes),)):
            raise ValueError(f"rotation must be one angle or one for each of {self.planes}, got {self.rotation}")

    def __call__(self, image: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            image: normalized sequences, background 0, shape ``(B, C, *spatial)``, no side below ``spatial_size``.
            label: inner classes, shape ``(B, 1, *spatial)``.

        Returns:
            Both, as new tensors of ``spatial_size``: the image float32, the label in its own type.

        Raises:
            ValueError: for a ``shift`` of another number of sequences.
        """
        image, label = self._turn(image.float(), label)
        image, label = self._mirror(image, label)
        image = self._blurred(image) if self.blur_prob else image
        image = self._bent(image) if self.gamma else image
        factors, shifts = (self._per_sequence(image) for _ in range(2))
        largest = torch.as_tensor(self.shift)
        if largest.shape not in ((), image.shape[1:2]):
            raise ValueError(
                f"shift must be one number or one for each of {image.shape[1]} sequences, got {self.shift}"
            )
        largest = largest.reshape(-1, *[1] * (image.ndim - 2)).to(image)
        image = image * (1 + self.scale * factors) + largest * shifts * (image != 0)
        return (self._drop(image) if self.drop_prob else image), label

    def _turn(self, image: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        window = [slice((side - size) // 2, (side - size) // 2 + size) for side, size in self._sides(image)]
        turned = (torch.rand(len(image)) < self.affine_prob).nonzero()[:, 0]
        matrices = self._matrices(len(turned)).to(image)
        cut = image[:, :, *window].clone(), label[:, :, *window].clone()
        if len(turned):
            turned = turned.to(image.device)
            grid = self._grid(matrices, image.shape[2:])
            for result, given, mode in zip(cut, (image, label), ("bilinear", "nearest"), strict=True):
                sampled = F.grid_sample(given[turned].to(grid), grid, mode=mode, align_corners=True)
                result[turned] = sampled.to(result.dtype)
        return cut

    def _sides(self, image: torch.Tensor) -> list[tuple[int, int]]:
        return list(zip(image.shape[2:], self.spatial_size, strict=True))

    def _matrices(self, number: int) -> torch.Tensor:
        """From a patch's voxels to those of the larger one it is sampled from, both about their centers."""
        dims = len(self.spatial_size)
        zooms = 1 + self.zoom * (1 - 2 * torch.rand(number, dims))
        angles = self.angles * (1 - 2 * torch.rand(number, len(self.planes)))
        matrices = torch.diag_embed(zooms)
        for plane, (a, b) in enumerate(self.planes):
            turn = torch.eye(dims).repeat(number, 1, 1)
            cos, sin = angles[:, plane].cos(), angles[:, plane].sin()
            turn[:, a, a], turn[:, a, b], turn[:, b, a], turn[:, b, b] = cos, -sin, sin, cos
            matrices = turn @ matrices
        return matrices

    def _grid(self, matrices: torch.Tensor, sides: Sequence[int]) -> torch.Tensor:
        """Where in the larger patch each voxel is sampled, in the coordinates of ``grid_sample``: last axis first."""
        axes = [torch.arange(size, device=matrices.device) - (size - 1) / 2 for size in self.spatial_size]
        voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).to(matrices)
        # The slice of the patch as it came starts at a whole voxel, which for an odd difference is not the center.
        off = [(side - size) // 2 - (side - size) / 2 for side, size in zip(sides, self.spatial_size, strict=True)]
        placed = torch.einsum("nab,...b->n...a", matrices, voxels) + torch.tensor(off).to(matrices)
        halves = torch.tensor([max(side - 1, 1) / 2 for side in sides]).to(matrices)
        return (placed / halves).flip(-1)

    def _mirror(self, image: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dims = len(self.spatial_size)
        mirrored = torch.rand(len(image), dims) < self.flip_prob
        for axis in range(dims):
            chosen = mirrored[:, axis].reshape((-1,) + (1,) * (dims + 1)).to(image.device)
            image = torch.where(chosen, image.flip(axis + 2), image)
            label = torch.where(chosen, label.flip(axis + 2), label)
        return image, label

    def _per_sequence(self, image: torch.Tensor) -> torch.Tensor:
        """One number in [-1, 1] for each sequence of each patch, of a shape that multiplies the image."""
        return (1 - 2 * torch.rand(image.shape[:2])).reshape(image.shape[:2] + (1,) * (image.ndim - 2)).to(image)

    def _blurred(self, image: torch.Tensor) -> torch.Tensor:
        dims = image.ndim - 2
        chosen = (torch.rand(image.shape[:2]) < self.blur_prob).flatten().nonzero()[:, 0]
        widths = self.blur * torch.rand(len(chosen), dims)
        if not len(chosen):
            return image
        radius = math.ceil(3 * self.blur)
        steps = torch.arange(-radius, radius + 1)
        sequences = image.flatten(0, 1)[chosen.to(image.device)][None]
        brain = (sequences != 0).to(image)
        # Brain alone is averaged: the zeros around it would darken its border.
        both = torch.cat([sequences, brain], 1)
        for axis in range(dims):
            kernels = torch.exp(-0.5 * (steps / widths[:, axis, None].clamp(min=1e-3)) ** 2).repeat(2, 1)
            shape = [-1, 1] + [len(steps) if other == axis else 1 for other in range(dims)]
            padding = [radius if other == axis else 0 for other in range(dims)]
            both = CONVOLUTIONS[dims](both, kernels.reshape(shape).to(both), padding=padding, groups=both.shape[1])
        sequences, weights = both.split(len(chosen), dim=1)
        image = image.clone()
        image.view(-1, *image.shape[2:])[chosen.to(image.device)] = (brain * sequences / weights.clamp(min=1e-6))[0]
        return image

    def _bent(self, image: torch.Tensor) -> torch.Tensor:
        axes, brain = tuple(range(2, image.ndim)), image != 0
        least = image.where(brain, image.new_tensor(torch.inf)).amin(axes, keepdim=True)
        greatest = image.where(brain, image.new_tensor(-torch.inf)).amax(axes, keepdim=True)
        span = (greatest - least).clamp(min=1e-6)
        power = (1 + self.gamma) ** self._per_sequence(image)
        return torch.where(brain, least + span * ((image - least) / span).clamp(0, 1) ** power, image)

    def _drop(self, image: torch.Tensor) -> torch.Tensor:
        number, sequences = image.shape[:2]
        lost = torch.randint(sequences, (number,))
        lost[torch.rand(number) >= self.drop_prob] = -1
        kept = lost[:, None] != torch.arange(sequences)
        return image * kept.reshape((number, sequences) + (1,) * len(self.spatial_size)).to(image)
