"""
Segment cases as other scanners and tools would have stored them, and compare the label maps, in the folder of a clone.

  python benchmarks/axis_orders.py CASES

Each case is segmented as it came; then, cut to its brain and a margin to save time, with its axes in all 48 orders and
directions and with zeros around it, all of which must give the same label map voxel for voxel; then in slices of 3 mm
and with its outer 15 mm of brain cut off, of which the Dice to the first label map is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
from tempfile import TemporaryDirectory
from typing import Any

import fire
import nibabel
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose
from nibabel.orientations import ornt2axcodes
from nibabel.spatialimages import SpatialImage

from omnet_monai.datalist import read_images
from omnet_monai.demo import bundle_root, inference_config
from omnet_monai.metrics import dice
from omnet_monai.regions import REGIONS, SEQUENCES, classes_from_codes, regions_from_classes
from omnet_monai.report import format_table
from omnet_monai.weights import load_weights

MARGIN = 4  # voxels of background
PADDING = ((7, 12), (0, 5), (21, 2))  # voxels before and behind each axis
SLICES = 3  # averaged into one
CUT = 15  # voxels

Images = dict[str, SpatialImage]


def main(cases: str, **overrides: Any) -> None:
    """
    Segment and compare.

    Args:
        cases: folder of a case or of many, images of 1 mm with axes along the body's.
        overrides: ids of inference.json, such as ``checkpoint_path``.

    Raises:
        SystemExit: if a label map differs that must not.
    """
    parser, rows, wrong = inference_config(bundle_root(), overrides), [], []
    load_weights(parser.get_parsed_content("network").eval(), parser.get_parsed_content("checkpoint_path"))
    for case in read_images(cases):
        files = zip(SEQUENCES, case["image"], strict=True)
        images: Images = {name: nibabel.Nifti1Image.from_filename(file) for name, file in files}
        segmenter = Segmenter(parser)
        (_, reference), *others = ((name, segmenter(variant)) for name, variant in _variants(images))
        different = {name: _different(label, reference) for name, label in others[:-2]}
        wrong += [f"{case['case']} {name}: {number} voxels differ" for name, number in different.items() if number]
        scores = [_dice(label, reference) for _, label in others[-2:]]
        equal = f"{sum(not number for number in different.values())} of {len(different)}"
        rows.append([case["case"], equal, segmenter.runs, *scores])
        header = ["case", "equal", "runs of the network", "3 mm slices: Dice WT / TC / ET", "cut into the brain"]
        print(format_table(header, rows), flush=True)
    if wrong:
        raise SystemExit("\n".join(wrong))


class Segmenter:
    """
    Segment images as inference.json does, which is what segment runs, but run the network once for inputs that are the
    same in every bit. The second of them is run again, to see that its result is the same in every bit too.

    Attributes:
        runs: how often the network was run.
    """

    def __init__(self, parser: ConfigParser) -> None:
        self.prepare, self.inferer, self.network, self.device, self.scheme, finish = (
            parser.get_parsed_content(name)
            for name in ("preprocessing", "inferer", "network", "device", "label_scheme", "postprocessing")
        )
        self.finish = Compose(finish.transforms[:-1])  # all but saving
        self.inputs, self.probs, self.runs = torch.zeros(0), torch.zeros(0), 0

    @torch.no_grad()
    def __call__(self, images: Images) -> SpatialImage:
        """Return the inner classes on the grid of the images."""
        with TemporaryDirectory() as folder:
            files = [f"{folder}/{name}.nii" for name in images]
            for image, file in zip(images.values(), files, strict=True):
                nibabel.save(image, file)
            data = self.prepare({"case": "case", "image": files})
        inputs = data["image"].as_tensor()[None]
        same = torch.equal(inputs, self.inputs)
        if not same or self.runs == 1:
            probs = self.inferer(inputs.to(self.device), self.network)[0].cpu()
            if same and not torch.equal(probs, self.probs):
                raise ValueError("the network must return the same for the same input")
            self.inputs, self.probs, self.runs = inputs, probs, self.runs + 1
        pred = MetaTensor(self.probs.clone(), affine=data["image"].affine)
        codes = self.finish(data | {"pred": pred})["pred"]
        return nibabel.Nifti1Image(classes_from_codes(codes, self.scheme)[0].numpy(), codes.affine.numpy())


def _variants(images: Images) -> Iterator[tuple[str, Images]]:
    """Name and make what to segment of a case: as it came, what must be equal to it, and two that need not."""
    brain = np.logical_or.reduce([_array(image) != 0 for image in images.values()])
    inside = np.argwhere(brain)
    first, last = inside.min(0), inside.max(0) + 1
    cropped = {name: _cut(image, first - MARGIN, last + MARGIN) for name, image in images.items()}
    yield "as it came", images
    for axes, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        orientation: Any = np.array([*zip(axes, signs, strict=True)])
        turned = {name: image.as_reoriented(orientation) for name, image in cropped.items()}
        yield "".join(nibabel.aff2axcodes(turned["t1"].affine)), turned
    yield "padded", {name: _pad(image) for name, image in cropped.items()}
    yield "slices", {name: _average_slices(image) for name, image in cropped.items()}
    yield "cut", {name: _cut(image, first + CUT, last - CUT) for name, image in images.items()}


def _array(image: SpatialImage) -> np.ndarray:
    return np.asarray(image.dataobj)


def _moved(array: np.ndarray, image: SpatialImage, origin: Any, steps: Any = (1, 1, 1)) -> SpatialImage:
    """Give an array the affine of an image whose voxel ``origin`` is the array's first, and whose steps are longer."""
    affine = image.affine.copy()
    affine[:3, 3] = nibabel.affines.apply_affine(image.affine, origin)
    affine[:3, :3] *= steps
    return nibabel.Nifti1Image(array, affine)


def _cut(image: SpatialImage, first: np.ndarray, last: np.ndarray) -> SpatialImage:
    first = np.maximum(first, 0)
    return _moved(_array(image)[tuple(map(slice, first, last))], image, first)


def _pad(image: SpatialImage) -> SpatialImage:
    return _moved(np.pad(_array(image), PADDING), image, [-before for before, _ in PADDING])


def _average_slices(image: SpatialImage) -> SpatialImage:
    array = _array(image)
    array = array[..., : array.shape[2] // SLICES * SLICES].astype(np.float32)
    thick = array.reshape(*array.shape[:2], -1, SLICES).mean(3)
    return _moved(thick.round().astype(np.int16), image, [0, 0, (SLICES - 1) / 2], [1, 1, SLICES])


def _different(label: SpatialImage, reference: SpatialImage) -> int:
    """Count the voxels in which a label map differs from one that holds it or that it holds, once mapped back."""
    found, expected = _on_one_grid(label, reference)
    missed = np.count_nonzero(_array(reference)) - np.count_nonzero(expected)
    return int(np.count_nonzero(found != expected) + missed + np.count_nonzero(_array(label)) - np.count_nonzero(found))


def _on_one_grid(label: SpatialImage, reference: SpatialImage) -> tuple[np.ndarray, np.ndarray]:
    """Turn a label map to the axes of a reference, and cut both to the box that they share."""
    to_reference = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(label.affine), nibabel.io_orientation(reference.affine)
    )
    turned = label.as_reoriented(to_reference)
    offset = np.linalg.solve(reference.affine, turned.affine)
    if not np.allclose(offset[:3, :3], np.eye(3)):
        raise ValueError(f"grids must have equal axes, got {ornt2axcodes(to_reference)}")
    first = np.rint(offset[:3, 3]).astype(int)
    low, high = np.maximum(first, 0), np.minimum(first + turned.shape, reference.shape)
    return _array(turned)[tuple(map(slice, low - first, high - first))], _array(reference)[tuple(map(slice, low, high))]


def _dice(label: SpatialImage, reference: SpatialImage) -> str:
    """Score a label map against the first in the box that it covers."""
    if label.header.get_zooms() != reference.header.get_zooms():
        array = np.repeat(_array(label), SLICES, axis=2)
        label = _moved(array, label, [0, 0, -(SLICES - 1) / 2 / SLICES], [1, 1, 1 / SLICES])
    masks = [regions_from_classes(torch.from_numpy(array.copy())[None]) for array in _on_one_grid(label, reference)]
    return " / ".join(f"{dice(pred, truth):.3f}" for pred, truth, _ in zip(*masks, REGIONS, strict=True))


if __name__ == "__main__":
    fire.Fire(main, name="python benchmarks/axis_orders.py")
