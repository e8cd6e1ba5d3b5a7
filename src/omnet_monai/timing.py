"""One case on its way from files to a label map, each stretch of it timed."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import CropForegroundd, SaveImaged
from torch import nn

from omnet_monai.cost import Passes
from omnet_monai.inferers import AutocastInferer
from omnet_monai.metrics import dice
from omnet_monai.regions import REGIONS, classes_from_codes, regions_from_classes
from omnet_monai.rivals import Rival

__all__ = ["Volume", "peak_memory", "process_memory", "race"]

STAGES = ("load", "preprocess", "inference", "post-process", "save")


class Volume:
    """
    A case as the bundle's inference prepares it.

    Args:
        case: an entry of a data list.
        parser: inference.json.
        device: where the network runs.
    """

    def __init__(self, case: Mapping[str, Any], parser: ConfigParser, device: torch.device) -> None:
        self.case, self.name, self.device = case, str(case["case"]), device
        self.before = list(parser.get_parsed_content("preprocessing").transforms)
        self.after = list(parser.get_parsed_content("postprocessing").transforms)
        self.scheme = parser.get_parsed_content("label_scheme")
        self.saver = next(step for step in self.after if isinstance(step, SaveImaged))
        self.data, shapes = dict(case), []
        for step in self.before:
            self.data = step(self.data)
            shapes.append(self.data["image"].shape[1:])
        self.truth = regions_from_classes(self.data["label"].as_tensor()) if "label" in self.data else None
        self.data.pop("label", None)
        image = self.data["image"]
        self.image = image.as_tensor()[None].to(device)
        self.native = tuple(int(side) for side in image.meta["spatial_shape"])
        # The whole volume on the prepared grid, and where in it the brain's box lies.
        crop = next(number for number, step in enumerate(self.before) if isinstance(step, CropForegroundd))
        scales = [side / cropped for side, cropped in zip(image.shape[1:], shapes[crop], strict=True)]
        first = [round(int(a) * scale) for a, scale in zip(self.data["foreground_start_coord"], scales, strict=True)]
        self.box = [slice(a, a + side) for a, side in zip(first, image.shape[1:], strict=True)]
        uncropped = [round(side * scale) for side, scale in zip(shapes[crop - 1], scales, strict=True)]
        self.whole = [max(side, box.stop) for side, box in zip(uncropped, self.box, strict=True)]

    def warm_up(self, rival: Rival) -> None:
        """Run a rival on a small part of the image, as the first call of a network pays for more than its own work."""
        middle = [slice(side // 2, side // 2 + 16) for side in self.image.shape[2:]]
        rival.inferer(self.image[:, :, *middle].contiguous(), rival.network)

    def segment(self, rival: Rival) -> tuple[float, list[float] | None, torch.Tensor]:
        """
        Segment by a rival.

        Returns:
            The seconds from the prepared image to probabilities; the largest memory in GB meanwhile, and how much that
            is above what was in use before, ``None`` where this system cannot tell; the region masks.
        """
        image = self.image
        if rival.whole:
            image = torch.zeros(1, image.shape[1], *self.whole, device=self.device)
            image[:, :, *self.box] = self.image
        before = _reset_peak(self.device)
        _wait(self.device)
        start = time.perf_counter()
        probs = rival.inferer(image, rival.network)
        _wait(self.device)
        took, memory = time.perf_counter() - start, None
        if before is not None:
            peak = peak_memory(self.device)
            memory = [peak, peak - before]
        return took, memory, self._masks(probs[0, :, *self.box] if rival.whole else probs[0]).cpu()

    def exactness(self, inferers: Mapping[str, AutocastInferer], network: nn.Module) -> dict[str, Any]:
        """
        Compare what inferers return to the same network on every window of the first of them in float64.

        Returns:
            By the inferers' names, ``largest``: largest difference of a probability; ``dice`` of WT, TC and ET between
            the two label maps.
        """
        first = next(iter(inferers.values()))
        exact = AutocastInferer(first.inferer, amp=False, fold=False, skip_empty=first.skip_empty)
        reference = exact(self.image.double(), copy.deepcopy(network).double())
        others, results = self._masks(reference[0].float()), {}
        for name, inferer in inferers.items():
            probs = inferer(self.image, network)
            largest = float((probs - reference).abs().max())
            results[name] = {"largest": largest, "dice": self.dice(self._masks(probs[0]), others)}
        return results

    def dice(self, masks: torch.Tensor, others: torch.Tensor | None) -> list[float] | None:
        """Return Dice of WT, TC and ET between two sets of masks, or nothing without the other set."""
        if others is None:
            return None
        return [dice(masks[region], others[region]) for region in range(len(REGIONS))]

    @torch.inference_mode()
    def stages(self, inferer: Inferer, network: nn.Module, repeats: int) -> dict[str, float | None]:
        """
        Time a whole case, stage by stage, in seconds: medians over ``repeats``.

        ``network`` is what passes inside the network, ``blend`` what the inferer adds; ``files alone`` is what nibabel
        takes to read the same files and write one label map, ``None`` for MetaImage, which it does not read.
        """
        times: dict[str, list[float]] = {}
        for _ in range(repeats):
            case = {key: value for key, value in self.case.items() if key != "label"}
            marks, data = [time.perf_counter()], self.before[0](case)
            marks.append(time.perf_counter())
            for step in self.before[1:]:
                data = step(data)
            marks.append(time.perf_counter())
            passes = Passes(network)
            probs = inferer(data["image"].as_tensor()[None].to(self.device), network)[0]
            _wait(self.device)
            marks.append(time.perf_counter())
            data = self._refine(probs)
            _wait(self.device)
            marks.append(time.perf_counter())
            self.saver(data)
            marks.append(time.perf_counter())
            stages = dict(zip(STAGES, np.diff(marks).tolist(), strict=True))
            stages |= {"network": passes.seconds, "blend": stages["inference"] - passes.seconds}
            stages |= {"whole case": marks[-1] - marks[0], "files alone": self._files_alone()}
            for name, took in stages.items():
                times.setdefault(name, []).append(took)
            passes.stop()
        medians = {name: median(values) for name, values in times.items()}
        return {name: None if np.isnan(took) else took for name, took in medians.items()}  # JSON knows no NaN

    def _masks(self, probs: torch.Tensor) -> torch.Tensor:
        """Turn probabilities, which are refined in place, into the region masks of the label map that is saved."""
        return regions_from_classes(classes_from_codes(self._refine(probs)["pred"], self.scheme))

    def _refine(self, probs: torch.Tensor) -> dict[str, Any]:
        """Run everything between probabilities and the saver: the label map on the case's own grid."""
        image = self.data["image"]
        pred = MetaTensor(probs, meta=dict(image.meta), applied_operations=image.applied_operations)
        data = self.data | {"pred": pred}
        for step in self.after:
            data = data if step is self.saver else step(data)
        return data

    def _files_alone(self) -> float:
        """Seconds that nibabel takes to read the case's files and to write a label map of its shape."""
        files, label = self.case["image"], np.zeros(self.native, np.uint8)
        label[tuple(slice(side // 3, side // 2) for side in self.native)] = 1
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            for file in files if isinstance(files, list) else [files]:
                if str(file).endswith(".mha"):
                    return float("nan")  # nibabel does not read MetaImage
                np.asanyarray(nibabel.load(file).dataobj)  # type: ignore[attr-defined]
            nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), Path(folder) / "label.nii.gz")
            return time.perf_counter() - start


@torch.inference_mode()
def race(rows: Sequence[Rival], volumes: Sequence[Volume], repeats: int) -> dict[str, Any]:
    """
    Let rows take turns on every case.

    Returns:
        By row and case: ``seconds`` of every turn, ``memory``, see :meth:`Volume.segment`, of the turn that took most
        of it, ``windows`` run, ``flops``, ``parameters``, and, for a row with trained weights, Dice ``truth`` against
        the label if there is one and ``first`` against the first row's.
    """
    results: dict[str, Any] = {row.name: {} for row in rows}
    for row in rows:
        volumes[0].warm_up(row)
    first: dict[str, torch.Tensor] = {}
    for turn in range(repeats):
        for volume in volumes:
            for row in (row for row in rows if not (turn and row.slow)):
                passes = Passes(row.network, timed=False)
                took, memory, masks = volume.segment(row)
                passes.stop()
                entry = results[row.name].setdefault(volume.name, {"seconds": [], "memory": memory})
                entry["seconds"].append(took)
                entry["memory"] = memory and max(memory, entry["memory"])
                if turn == 0:
                    entry |= {"windows": passes.windows, "flops": passes.flops()}
                    entry["parameters"] = sum(weights.numel() for weights in row.network.parameters())
                    if row.trained:
                        against = first.setdefault(volume.name, masks)
                        entry |= {"truth": volume.dice(masks, volume.truth), "first": volume.dice(masks, against)}
                    print(f"{volume.name}: {row.name}: {took:.2f} s", flush=True)
    return results


def peak_memory(device: torch.device) -> float:
    """Return the largest memory in GB since the last reset: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return process_memory("VmHWM")


def process_memory(entry: str) -> float:
    """Return what Linux says of this process's memory, in GB: ``VmRSS`` now, or ``VmHWM`` at the peak."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[entry].split()[0]) * 1024 / 1e9  # its kB are of 1,024 bytes


def _reset_peak(device: torch.device) -> float | None:
    """Begin a new measurement of memory; return what is in use in GB, nothing where this system cannot tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return peak_memory(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak_memory(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
