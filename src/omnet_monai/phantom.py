"""Generated brains with tumors: four MR sequences and a label map, to try everything without patient data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import fft, ndimage

from omnet_monai.files import whole_file
from omnet_monai.regions import EDEMA, ENHANCING, NECROSIS, SEQUENCES, codes_from_classes

__all__ = ["KINDS", "SMALLEST_SIZE", "make_phantom", "write_phantoms"]

KINDS = {"common": 0.85, "without_enhancing": 0.07, "tiny_core": 0.03, "without_tumor": 0.05}
"""Kinds and their rates under ``kind="random"``: the second and third as measured (27 and 11 of 367 label maps), the
last our choice. A tiny core is at most 5 % of WT."""

SMALLEST_SIZE = (32, 32, 24)
"""The smallest volume, in voxels, that holds a brain with a tumor of three classes."""

# Measured on nine BraTS cases (2013-2021), z-scored per sequence inside the brain, in the order of SEQUENCES: each
# class's median (mean over the cases), its standard deviation between cases, and the standard deviation within a case.
# Rim: the outer 2 mm. CSF, gray and white matter: 3-means clusters of T1 and T2, more than 4 mm below the surface.
_CONTRAST = {
    "rim": ((-1.62, -1.08, -0.87, -1.46), (0.57, 0.64, 0.47, 0.46), (1.36, 1.53, 1.18, 0.93)),
    "csf": ((-0.82, -0.73, 1.71, -0.67), (0.19, 0.24, 0.59, 0.44), (0.65, 0.94, 0.95, 0.92)),
    "gray": ((-0.10, -0.19, -0.22, 0.13), (0.26, 0.16, 0.22, 0.25), (0.46, 0.65, 0.39, 0.57)),
    "white": ((0.77, 0.45, -0.47, -0.06), (0.16, 0.17, 0.16, 0.21), (0.32, 0.44, 0.27, 0.43)),
    NECROSIS: ((0.08, -0.47, 1.92, 2.33), (0.91, 0.42, 0.88, 0.68), (0.38, 0.58, 0.69, 0.82)),
    EDEMA: ((0.36, -0.08, 0.72, 1.78), (0.39, 0.25, 0.45, 0.53), (0.49, 0.51, 0.61, 0.80)),
    ENHANCING: ((0.33, 2.16, 1.07, 2.06), (0.75, 0.67, 0.73, 0.72), (0.46, 1.26, 0.56, 0.83)),
}
# Same cases and order. Variation: standard deviation over mean inside the brain. Noise: standard deviation of neighbor
# differences in white matter over sqrt(2), in z. Bias: relative deviation of white matter smoothed by 15 mm.
_VARIATION, _NOISE, _BIAS = (0.24, 0.39, 0.46, 0.37), (0.08, 0.09, 0.06, 0.09), (0.03, 0.05, 0.07, 0.07)
# Chosen: the part of the deviation within each class laid on as texture. There are no vessels and no skull remnants, so
# that ratios of intensities are as measured, but after z-scoring tumors stand out about a third more than real ones.
_TEXTURE = np.array((0.5, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5), np.float32)

# Measured on 367 BraTS 2020 label maps: quantiles of the volume of WT over a brain of 1.44 million mm3, of TC over WT,
# and of ET over TC where there is any. Tiny: TC below 5 % of WT.
_LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_WHOLE = (0.005, 0.014, 0.035, 0.062, 0.100, 0.139, 0.249)
_CORE = {
    "common": (0.051, 0.122, 0.243, 0.388, 0.560, 0.750, 0.950),
    "without_enhancing": (0.087, 0.149, 0.405, 0.538, 0.684, 0.859, 0.897),
    "tiny_core": (0.022, 0.023, 0.035, 0.041, 0.044, 0.048, 0.050),
}
_ENHANCING = {
    "common": (0.005, 0.022, 0.491, 0.636, 0.789, 0.942, 1.000),
    "tiny_core": (0.073, 0.137, 0.730, 0.842, 0.894, 0.953, 0.983),
}
# Same maps: 17 % have a second component; axes relative to the longest are 0.75 and 0.59; the distance of the centers
# of TC and WT over the radius of WT has these quantiles; the median sphericity of WT is 0.68, that of TC 0.85.
_SECOND_COMPONENT, _AXES = 0.17, np.array((1.0, 0.75, 0.59))
_OFFSET = (0.0, 0.07, 0.16, 0.27, 0.43, 0.65, 0.80)

_EXTENT = (138.0, 170.0, 138.0)  # mm, bounding box of a skull-stripped brain: median of the nine cases
# Center and half axes in mm of the right half's ellipsoids, mirrored in the first axis; +y is back, +z is up.
_LOBES = (((20, -2, 12), (45, 79, 53)), ((38, -12, -24), (26, 42, 26)), ((0, 44, -36), (48, 31, 26)))
_VENTRICLES = (((12, -22, 14), (7, 17, 9)), ((16, 16, 12), (7, 24, 10)), ((0, 8, -2), (3, 14, 9)))
_NUCLEI = (((26, -6, 4), (9, 22, 12)), ((11, 4, 2), (8, 14, 9)))


def make_phantom(
    seed: int | np.random.SeedSequence, size: Sequence[int] = (96, 96, 64), kind: str = "random"
) -> tuple[np.ndarray, np.ndarray]:
    """
    Make one skull-stripped brain, with sizes, class shares and contrasts drawn from figures measured on real cases.

    All lengths follow the scale of the brain, which fills the volume: a small volume holds a coarse brain, not a part.

    Args:
        seed: the same seed, size and kind give the same phantom.
        size: shape of the volume in voxels, at least ``SMALLEST_SIZE``. From 240 x 240 x 155 on one voxel is 1 mm.
        kind: a key of ``KINDS``, or ``"random"`` for one of them at its rate.

    Returns:
        Images, int16, shape ``(4, *size)`` in the order of ``SEQUENCES``, positive inside the brain and 0 outside;
        and the label map of inner classes 0-3, uint8, shape ``size``.

    Raises:
        ValueError: for an unknown kind and a size that is too small or not three numbers.
    """
    if kind != "random" and kind not in KINDS:
        raise ValueError(f"kind must be random or one of {', '.join(KINDS)}, got {kind!r}")
    if len(size) != 3 or any(have < least for have, least in zip(size, SMALLEST_SIZE, strict=True)):
        raise ValueError(f"size must be three numbers of at least {SMALLEST_SIZE}, got {tuple(size)}")
    rng = np.random.default_rng(seed)
    drawn = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    spacing = max(1.0, *(extent / (0.94 * n) for extent, n in zip(_EXTENT, size, strict=True)))  # mm per voxel
    box = tuple(min(n, int(np.ceil(extent / spacing)) + 2) for extent, n in zip(_EXTENT, size, strict=True))
    tissues = _anatomy(rng, box, spacing)
    label = _tumor(rng, tissues, spacing, drawn if kind == "random" else kind)
    margins = [((n - b) // 2, n - b - (n - b) // 2) for n, b in zip(size, box, strict=True)]
    return np.pad(_images(rng, tissues, label, spacing), [(0, 0), *margins]), np.pad(label, margins)


def write_phantoms(
    directory: str | Path, cases: int = 8, seed: int = 0, size: Sequence[int] = (96, 96, 64), kind: str = "mixed"
) -> list[Path]:
    """
    Write phantoms as a BraTS 2017-2021 data set: ``phantom_000/phantom_000_{t1,t1ce,t2,flair,seg}.nii.gz``.

    Args:
        directory: made if missing; files of the same name are replaced.
        cases: number of cases, at least 1.
        seed: case ``i`` depends on ``(seed, i)`` alone, not on the number of cases.
        size: shape of each volume in voxels.
        kind: that of every case, as for :func:`make_phantom`; ``"mixed"`` makes the first five of every eight cases
            common, and the others one of each special kind in the order of ``KINDS``.

    Returns:
        The case folders.

    Raises:
        ValueError: for less than one case, a negative seed, an unknown kind, and a size that is too small.
    """
    for name, number, least in (("cases", cases, 1), ("seed", seed, 0)):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])  # 1 mm, LPS
    kinds, folders = ["common"] * 4 + list(KINDS) if kind == "mixed" else [kind], []
    for index in range(cases):
        images, label = make_phantom(np.random.SeedSequence((seed, index)), size, kinds[index % len(kinds)])
        affine[1, 3] = label.shape[1] - 1.0  # the origin of BraTS: (0, 239, 0) for 240 rows
        codes = codes_from_classes(torch.from_numpy(label), "brats2017").numpy()
        folder = Path(directory) / f"phantom_{index:03d}"
        for suffix, volume in zip(("t1", "t1ce", "t2", "flair", "seg"), (*images, codes), strict=True):
            with whole_file(folder / f"{folder.name}_{suffix}.nii.gz") as file:
                nib.save(nib.Nifti1Image(volume, affine), file)
        folders.append(folder)
    return folders


def _anatomy(rng: np.random.Generator, shape: tuple[int, ...], spacing: float) -> np.ndarray:
    """Return the shares of rim, CSF, gray and white matter per voxel, float32, shape (4, *shape); all 0 outside."""
    x, y, z = np.meshgrid(*((np.arange(n, dtype=np.float32) - (n - 1) / 2) * spacing for n in shape), indexing="ij")
    wobble, mirrored = _noise(rng, shape, 15 / spacing), (np.abs(x), y, z)
    brain = _radius(mirrored, _LOBES) + 0.025 * wobble < 1
    depth = ndimage.distance_transform_edt(np.pad(brain, 1))[1:-1, 1:-1, 1:-1].astype(np.float32) * spacing
    # Folds: zero crossings of band-passed noise, read near the surface and carried inwards so that they stand upright.
    folds = _noise(rng, shape, 3.5 / spacing) - 0.5 * _noise(rng, shape, 8 / spacing)
    reach = np.sqrt((x / 58) ** 2 + (y / 72) ** 2 + (z / 56) ** 2) + 1e-3
    surface = [axis / reach / spacing + (n - 1) / 2 for axis, n in zip((x, y, z), shape, strict=True)]
    sulcus = 4 * np.abs(ndimage.map_coordinates(folds, surface, order=1, mode="nearest")) + np.maximum(depth - 17, 0)
    fissure = np.abs(x + wobble) + 2 * np.maximum(36 - np.hypot(y, z + 8), 0)
    outer = np.minimum(np.minimum(depth, sulcus), fissure)  # mm to the nearest outer surface, folds included
    ventricle = (_radius(mirrored, _VENTRICLES) + 0.12 * wobble - 1) * 7  # about mm
    nucleus = (_radius(mirrored, _NUCLEI) + 0.08 * wobble - 1) * 9
    csf = np.clip(0.5 - np.minimum(outer - 1.0, ventricle) / spacing, 0, 1)
    gray = np.clip(0.5 - np.minimum(outer - 4.5, nucleus) / spacing, 0, 1)
    rim = np.clip(0.5 - (depth - 2) / spacing, 0, 1)
    return np.stack([rim, (1 - rim) * csf, (1 - rim) * (1 - csf) * gray, (1 - rim) * (1 - csf) * (1 - gray)]) * brain


def _tumor(rng: np.random.Generator, tissues: np.ndarray, spacing: float, kind: str) -> np.ndarray:
    """Return the label map of inner classes for one kind of case, uint8, shape (*spatial)."""
    label = np.zeros(tissues.shape[1:], np.uint8)
    if kind == "without_tumor":
        return label
    brain = tissues.any(0)
    allowed = brain & (ndimage.gaussian_filter(tissues[1], 2 / spacing) < 0.6)  # not in the ventricles
    count = max(12.0, brain.sum() * _draw(rng, _WHOLE))
    radius = (count * 3 / 4 / np.pi) ** (1 / 3)
    deep = ndimage.gaussian_filter(tissues[3], 6 / spacing)
    center = rng.choice(np.argwhere(deep >= np.quantile(deep[brain], 0.6)))
    smooth, rough = _noise(rng, label.shape, max(1.0, radius / 3)), _noise(rng, label.shape, 4 / spacing)
    distance = _distance(rng, label.shape, center) / radius
    spared = 0.25 * (1 - tissues[3]) + 0.2 * tissues[0]  # edema follows the white matter
    whole = _largest(_lowest(distance + 0.10 * smooth + 0.06 * rough + spared, allowed, count))
    center = center + np.linalg.qr(rng.normal(size=(3, 3)))[0][0] * _draw(rng, _OFFSET) * radius
    distance = _distance(rng, label.shape, center) / radius
    core_count = max(1.0, whole.sum() * _draw(rng, _CORE[kind]))
    core = _largest(_lowest(distance + 0.06 * smooth + 0.02 * rough, whole, core_count))
    around = np.argwhere(allowed & (distance > 1.8) & (distance < 2.5))
    if len(around) and rng.random() < _SECOND_COMPONENT:
        whole |= _lowest(_distance(rng, label.shape, rng.choice(around)) + rough, allowed, 0.05 * count)
    label[whole] = EDEMA
    label[core] = NECROSIS
    if kind in _ENHANCING:
        depth = ndimage.distance_transform_edt(core)
        ring = depth / depth.max() + 0.25 * _noise(rng, label.shape, 4 / spacing)
        label[_lowest(ring, core, core.sum() * _draw(rng, _ENHANCING[kind]))] = ENHANCING
    return label


def _images(rng: np.random.Generator, tissues: np.ndarray, label: np.ndarray, spacing: float) -> np.ndarray:
    """Return the four sequences, int16, shape (4, *spatial), from tissue shares and label map."""
    median, between, within = np.array(list(_CONTRAST.values()), np.float32).swapaxes(0, 1)  # (classes, 4) each
    median += rng.uniform(-1, 1, median.shape).astype(np.float32) * between
    brain, tumor = tissues.any(0), [label == cls for cls in (NECROSIS, EDEMA, ENHANCING)]
    shares = np.concatenate([tissues * (label == 0), tumor]).astype(np.float32)
    shares[0] += ~brain  # smoothing must mix the surface with rim, not with nothing
    bias = _noise(rng, label.shape, 25 / spacing)
    images = np.zeros((len(SEQUENCES), *label.shape), np.int16)
    for k in range(len(SEQUENCES)):
        z = ndimage.gaussian_filter(np.tensordot(median[:, k], shares, 1), 0.5)
        z += np.tensordot(within[:, k] * _TEXTURE, shares, 1) * _noise(rng, label.shape, max(1.0, 3 / spacing))
        z += _NOISE[k] * rng.standard_normal(label.shape, dtype=np.float32)
        values = rng.uniform(400, 1500) * np.exp(_BIAS[k] * bias) * (1 + _VARIATION[k] * z)
        images[k] = np.where(brain, np.clip(np.rint(values), 1, 32767), 0)
    return images


def _noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Return Gaussian noise smoothed by ``sigma`` voxels, mean 0 and standard deviation 1, float32."""
    spectrum = fft.rfftn(rng.standard_normal(shape, dtype=np.float32))
    for axis, n in enumerate(shape):
        frequency = np.abs(fft.fftfreq(n))[: spectrum.shape[axis]].astype(np.float32)
        spectrum *= np.exp(-2 * (np.pi * sigma * frequency) ** 2).reshape([-1 if a == axis else 1 for a in range(3)])
    field = fft.irfftn(spectrum, shape)
    return (field - field.mean()) / field.std()


def _radius(grid: Sequence[np.ndarray], ellipsoids: Sequence[tuple[Sequence[float], Sequence[float]]]) -> np.ndarray:
    """Return the distance from the nearest ellipsoid's center in units of its half axes: below 1 inside."""
    squares = np.full(grid[0].shape, np.inf, np.float32)
    for center, halves in ellipsoids:
        parts = (((axis - c) / half) ** 2 for axis, c, half in zip(grid, center, halves, strict=True))
        squares = np.minimum(squares, sum(parts))
    return np.sqrt(squares)


def _distance(rng: np.random.Generator, shape: tuple[int, ...], center: np.ndarray) -> np.ndarray:
    """Return the distance from ``center`` in voxels, along randomly turned axes of the lengths of a tumor's."""
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] / (_AXES / _AXES.prod() ** (1 / 3))
    offsets = np.stack(np.meshgrid(*(np.arange(n) - c for n, c in zip(shape, center, strict=True)), indexing="ij"), -1)
    return np.linalg.norm(offsets.astype(np.float32) @ turn.astype(np.float32), axis=-1)


def _lowest(field: np.ndarray, allowed: np.ndarray, count: float) -> np.ndarray:
    """Mark the ``count`` voxels of ``allowed`` where ``field`` is lowest."""
    rank = min(int(allowed.sum()), max(1, round(count))) - 1
    return allowed & (field <= np.partition(field[allowed], rank)[rank])


def _largest(mask: np.ndarray) -> np.ndarray:
    """Keep the largest component of a mask that holds at least one voxel."""
    components, _ = ndimage.label(mask)
    return components == np.bincount(components[mask]).argmax()


def _draw(rng: np.random.Generator, quantiles: Sequence[float]) -> float:
    """Draw from a distribution given by its values at ``_LEVELS``."""
    return float(np.interp(rng.random(), _LEVELS, quantiles))
