"""A thin inferer around MONAI's own: mixed precision and memory format fit for the device at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from monai.inferers import Inferer
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["AutocastInferer", "MirroringInferer", "default_device", "has_bfloat16"]


class AutocastInferer(Inferer):
    """
    Run one of MONAI's inferers under autocast and in the channels-last memory format.

    MONAI's engines know only CUDA autocast, and MONAI Label calls ``inferer(inputs, network)`` and nothing else: here
    both get mixed precision. A network in training mode but without gradients, as MONAI Label has it to score cases by
    what dropout changes, is put into evaluation mode with its dropout on, and stays so.

    Args:
        inferer: the inferer that does the work.
        amp: run convolutions in bfloat16 where the hardware computes in it; float32 elsewhere, and when training on a
            CPU with patches whose first of three sides is below 17 voxels.

    Raises:
        ValueError: if ``amp`` is no truth value: "--amp false" on the command line is a text, and would count as true.
    """

    def __init__(self, inferer: Inferer, amp: bool = True) -> None:
        super().__init__()
        if not isinstance(amp, bool):
            raise ValueError(f"amp must be True or False, with a capital letter on the command line, got {amp!r}")
        self.inferer = inferer
        self.amp = amp

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what the wrapped inferer returns for ``inputs``, shape ``(B, C, *spatial)``."""
        kind = inputs.device.type
        _leave_only_dropout(network)

        def channels_last(window: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            layout = torch.channels_last_3d if window.dim() == 5 else torch.channels_last
            return network(window.contiguous(memory_format=layout), *args, **kwargs)

        amp = self.amp and has_bfloat16(kind) and not _meets_depth_two(inputs)
        with torch.autocast(kind, torch.bfloat16, enabled=amp):
            return self.inferer(inputs, channels_last, *args, **kwargs)


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


def has_bfloat16(device_type: str) -> bool:
    """Tell whether convolutions in bfloat16 are native to the device type, ``"cuda"`` or ``"cpu"``."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def _meets_depth_two(inputs: torch.Tensor) -> bool:
    """
    Tell whether training on these patches meets a 3-D convolution with a first side of 2 on a CPU.

    Its weight gradient in bfloat16 is whatever memory holds, up to infinity, on a CPU with AVX-512 BF16 but without
    AMX (torch 2.13). A network of four levels halves 16 to 2; the first side that it does not is above 16.
    """
    return inputs.device.type == "cpu" and torch.is_grad_enabled() and inputs.dim() == 5 and inputs.shape[2] <= 16


def _leave_only_dropout(network: Callable[..., Any]) -> None:
    if isinstance(network, nn.Module) and network.training and not torch.is_grad_enabled():
        for module in network.modules():
            module.training = isinstance(module, _DropoutNd)
