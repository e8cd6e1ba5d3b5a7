"""A thin inferer around MONAI's own: precision, memory format and windows fit for the device and case at hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from monai.inferers import Inferer, SlidingWindowInferer
from monai.utils import convert_to_tensor, ensure_tuple_rep, fall_back_tuple
from torch import nn
from torch.nn.functional import interpolate
from torch.nn.modules.dropout import _DropoutNd

from omnet_monai.networks.folding import LAYOUTS, folded
from omnet_monai.postprocessing import remove_unsure_clusters

__all__ = ["AutocastInferer", "MirroringInferer", "default_device", "has_bfloat16", "windows_at_once"]

GATHERED = 8
"""Batches of windows from which one is made of those that run after a search: full ones take less time a window."""


class AutocastInferer(Inferer):
    """
    Run one of MONAI's inferers under autocast and in the channels-last memory format.

    MONAI's engines know only CUDA autocast, and MONAI Label calls ``inferer(inputs, network)`` and nothing else: here
    both get mixed precision. Without gradients, the network is one copy for the call whose batch normalization is
    folded into its convolutions, and what it says outside the brain does not count: the result is 0 there, and a window
    without brain is not run. Nor is, if tumor is searched for first, one without a trace of it.

    A network in training mode but without gradients, as MONAI Label has it to score cases by what dropout changes, is
    put into evaluation mode with its dropout on, and stays so.

    Args:
        inferer: the inferer that does the work.
        amp: run convolutions in bfloat16 where the hardware computes in it; float32 elsewhere, and when training on a
            CPU with patches whose first of three sides the network shrinks to 2 voxels: below 17 with four levels.
        fold: without gradients, fold batch normalization, and keep weights in bfloat16 where that is computed in.
        skip_empty: without gradients, return 0 where all channels are 0, and do not run windows that are so throughout.
        search: without gradients and with ``skip_empty``, segment the image with voxels this many times as wide first
            (ours). Only windows that then have tumor within are run in full, and blended with what was found in the
            others: within is deeper than half of the overlap, as what lies at a window's border lies deeper in its
            neighbor. All of them run if it is 0, if nothing is found, if the wider voxels of the image do not fill a
            window, and if a sequence is 0 throughout: of such a case a network is less sure.
        search_threshold: in the search, tumor is where the first channel of the result, WT, exceeds this.
        search_peak: clusters of it in which WT is nowhere above this do not count; 0 counts all.

    Raises:
        ValueError: if a switch is no truth value: "--amp false" on the command line is a text, and would count as true;
            if ``search`` is neither 0 nor above 1, or the inferer has no windows; if ``search_threshold`` or
            ``search_peak`` is not in [0, 1).
    """

    def __init__(
        self,
        inferer: Inferer,
        amp: bool = True,
        fold: bool = True,
        skip_empty: bool = True,
        search: float = 0.0,
        search_threshold: float = 0.125,
        search_peak: float = 0.0,
    ) -> None:
        super().__init__()
        for name, switch in {"amp": amp, "fold": fold, "skip_empty": skip_empty}.items():
            if not isinstance(switch, bool):
                raise ValueError(f"{name} must be True or False, capitalized on the command line, got {switch!r}")
        if search and not search > 1:
            raise ValueError(f"search must be 0 or above 1, got {search}")
        if search and not isinstance(inferer, SlidingWindowInferer):
            raise ValueError(f"search needs a SlidingWindowInferer, got {type(inferer).__name__}: set search to 0")
        for name, value in {"search_threshold": search_threshold, "search_peak": search_peak}.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        self.inferer = inferer
        self.amp = amp
        self.fold = fold
        self.skip_empty = skip_empty
        self.search = search
        self.search_threshold = search_threshold
        self.search_peak = search_peak

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what the wrapped inferer returns for ``inputs``, shape ``(B, C, *spatial)``."""
        kind, inference = inputs.device.type, not torch.is_grad_enabled()
        amp = self.amp and has_bfloat16(kind) and (inference or not _meets_depth_two(inputs, network))
        _leave_only_dropout(network)
        if self.fold and inference and isinstance(network, nn.Module):
            network = folded(network, torch.bfloat16 if amp else None)
        skip = self.skip_empty and inference
        with torch.autocast(kind, torch.bfloat16, enabled=amp):
            if skip and self._searches(inputs):
                results = self._run_where_found(inputs, network, *args, **kwargs)
            else:
                results = self.inferer(inputs, _Windows(network, skip), *args, **kwargs)
        return results * inputs.any(1, keepdim=True).to(results.device) if skip else results

    def _searches(self, inputs: torch.Tensor) -> bool:
        """Tell whether the search is on, the image complete, and large enough for it to save anything."""
        if not self.search or not inputs.flatten(2).any(2).all():
            return False
        sides: Any = self._search_size(inputs)
        window = fall_back_tuple(self.inferer.roi_size, sides)  # type: ignore[attr-defined]
        return all(side >= width for side, width in zip(sides, window, strict=True))

    def _search_size(self, inputs: torch.Tensor) -> list[int]:
        return [max(1, round(side / self.search)) for side in inputs.shape[2:]]

    def _run_where_found(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Segment with wider voxels, then those windows in full that have tumor; of the others that was the result."""
        image = convert_to_tensor(inputs)
        small = interpolate(image, self._search_size(image), mode="area")
        found = self.inferer(small, _Windows(network, True), *args, **kwargs).to(image.device)
        sure = found[:, :1].clone()
        for whole in sure:
            remove_unsure_clusters(whole, self.search_peak, self.search_threshold)
        mode = "trilinear" if image.dim() == 5 else "bilinear"
        found, guide = (interpolate(part, image.shape[2:], mode=mode) for part in (found, sure))
        guide[(guide <= self.search_threshold).flatten(1).all(1)] = 1  # nothing is found: look everywhere
        gathering: Any = copy(self.inferer)
        which = image.shape[1], self.search_threshold, self._margins(image.shape[2:]), gathering.sw_batch_size
        gathering.sw_batch_size *= GATHERED
        return gathering(torch.cat([inputs, found, guide], 1), _Windows(network, True, *which), *args, **kwargs)

    def _margins(self, sides: Sequence[int]) -> list[int]:
        """Return half of the overlap of windows in voxels, by axes; 0 along those that one window fills."""
        sliding: Any = self.inferer
        windows, overlaps = fall_back_tuple(sliding.roi_size, sides), ensure_tuple_rep(sliding.overlap, len(sides))
        return [
            int(width * overlap / 2) if width < side else 0
            for side, width, overlap in zip(sides, windows, overlaps, strict=True)
        ]


class MirroringInferer(Inferer):
    """
    Average what an inferer returns for an image and for its mirror images, each mirrored back: test-time flips.

    Args:
        inferer: the inferer that does the work.
        axes: spatial axes to mirror along, in every combination: none are one pass, three are eight.
    """

    def __init__(self, inferer: Inferer, axes: Sequence[int] = ()) -> None:
        super().__init__()
        self.inferer = inferer
        self.axes = tuple(axes)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the mean over all mirror images of ``inputs``, shape ``(B, C, *spatial)``."""
        mirrored = [sides for number in range(len(self.axes) + 1) for sides in combinations(self.axes, number)]
        total = torch.zeros(())
        for sides in mirrored:
            dims = [side + 2 for side in sides]
            total = total + self.inferer(inputs.flip(dims), network, *args, **kwargs).flip(dims)
        return total / len(mirrored)


def default_device() -> torch.device:
    """Return the first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def windows_at_once(device: torch.device | str, roi_size: Sequence[int]) -> int:
    """
    Return how many windows go through the network together: four on a CPU, for its caches; on a GPU, where four small
    ones leave most of it idle, as many as have a million voxels.
    """
    return 4 if torch.device(device).type == "cpu" else max(4, 2**20 // math.prod(roi_size))


def has_bfloat16(device_type: str) -> bool:
    """Tell whether convolutions in bfloat16 are native to the device type, ``"cuda"`` or ``"cpu"``."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and torch.cpu._is_avx512_bf16_supported()


@dataclass
class _Windows:
    """
    A network that takes its windows in channels-last, and does not run on those that are empty.

    With a threshold, a window has more channels than the ``channels`` of the image: what a search found, its result if
    it does not run, and last one that must exceed the threshold somewhere within its ``margins`` for it to run. Those
    that run go through the network ``at_once``.
    """

    network: Callable[..., Any]
    skip_empty: bool
    channels: int = 0
    threshold: float | None = None
    margins: Sequence[int] = ()
    at_once: int = 0
    background: torch.Tensor | None = None

    def __call__(self, windows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.skip_empty:
            return self._run(windows, *args, **kwargs)
        if self.threshold is None:
            return self._where(windows.flatten(1).any(1), windows, *args, **kwargs)
        image, found, guide = windows[:, : self.channels], windows[:, self.channels : -1], windows[:, -1]
        sides = zip(self.margins, guide.shape[1:], strict=True)
        within = guide[:, *(slice(margin, side - margin) for margin, side in sides)]
        runs = (within > self.threshold).flatten(1).any(1) & image.flatten(1).any(1)
        results = found.clone()
        if runs.any():
            parts = [self._run(part, *args, **kwargs) for part in image[runs].split(self.at_once)]
            results[runs] = torch.cat(parts).to(results.dtype)
        return results

    def _where(self, runs: torch.Tensor, windows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run those windows; the result of the others is 0."""
        some = bool(runs.any())
        if some or self.background is None:  # only the network knows how many channels a result has
            found = self._run(windows[runs] if some else windows[:1], *args, **kwargs)
            self.background = torch.zeros_like(found[:1])
        results = self.background.repeat_interleave(len(windows), dim=0)
        if some:
            results[runs] = found
        return results

    def _run(self, windows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.network(windows.contiguous(memory_format=LAYOUTS[windows.dim()]), *args, **kwargs)


def _meets_depth_two(inputs: torch.Tensor, network: Callable[..., Any]) -> bool:
    """
    Tell whether training on these patches meets a 3-D convolution with a first side of 2 on a CPU.

    Its weight gradient in bfloat16 is whatever memory holds, up to infinity, on a CPU with AVX-512 BF16 but without
    AMX (torch 2.13). A network that divides a side by 8, as OM-Net's four levels and others that do not say what they
    divide by, halves 16 to 2; the first side that it does not is above 16.
    """
    if inputs.device.type != "cpu" or inputs.dim() != 5:
        return False
    modules: list[Any] = list(network.modules()) if isinstance(network, nn.Module) else []
    return inputs.shape[2] <= 2 * next((module.divisor for module in modules if hasattr(module, "divisor")), 8)


def _leave_only_dropout(network: Callable[..., Any]) -> None:
    if isinstance(network, nn.Module) and network.training and not torch.is_grad_enabled():
        for module in network.modules():
            module.training = isinstance(module, _DropoutNd)
