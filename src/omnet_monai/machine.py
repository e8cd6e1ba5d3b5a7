"""What a machine can do at best: the rates that a network's own is measured against."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

from omnet_monai.networks.folding import LAYOUTS

__all__ = ["convolution_seconds", "machine_rates", "seconds"]

STRETCH = 0.05
"""Seconds that repeated calls are timed for at least."""

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def seconds(run: Callable[[], Any], device: torch.device | str = "cpu", repeats: int = 5) -> float:
    """
    Return the median wall time of a call in seconds, after some that do not count. Short calls are timed many at once,
    so that neither the clock nor waiting for a GPU weighs on them.
    """
    _stretch(run, 1, device)
    number = max(1, round(STRETCH / max(_stretch(run, 1, device), 1e-6)))
    return median(_stretch(run, number, device) / number for _ in range(repeats))


def _stretch(run: Callable[[], Any], number: int, device: torch.device | str) -> float:
    start = time.perf_counter()
    for _ in range(number):
        run()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@torch.inference_mode()
def machine_rates(device: torch.device | str = "cpu", sizes: tuple[int, ...] = (1024, 2048, 4096, 8192)) -> dict:
    """
    Measure matrix products and copies.

    Args:
        device: where to measure.
        sizes: sides of the square matrices.

    Returns:
        ``matmul``: TFLOP/s by type and side; ``copy``: GB/s, read and written bytes counted, of a tensor of 256 MB.
    """
    rates: dict[str, Any] = {"matmul": {}}
    for name, dtype in TYPES.items():
        rates["matmul"][name] = {}
        for size in sizes:
            a = torch.randn(size, size, device=device).to(dtype)
            took = seconds(lambda a=a: a @ a, device, repeats=3)  # type: ignore[misc]
            rates["matmul"][name][str(size)] = 2 * size**3 / took / 1e12
    source = torch.randn(64 * 2**20, device=device)
    target = torch.empty_like(source)
    rates["copy"] = 2 * source.numel() * 4 / seconds(lambda: target.copy_(source), device) / 1e9
    return rates


@torch.inference_mode()
def convolution_seconds(network: nn.Module, windows: torch.Tensor) -> list[dict[str, Any]]:
    """
    Time every convolution of a network alone, in the better of two memory formats and of two types.

    Args:
        network: a network in evaluation mode.
        windows: what it runs on, shape ``(B, C, *spatial)``.

    Returns:
        One entry for each different convolution: ``kind``, channels ``in`` and ``out``, ``kernel``, ``input`` shape,
        how many ``times`` the network has it, the ``flops`` and the ``seconds`` of one.
    """
    found: dict[tuple, tuple[Any, int, int]] = {}

    def note(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        key = (type(layer).__name__, *layer.weight.shape, tuple(inputs[0].shape))
        # Each output voxel of a convolution, and each input voxel of a transposed one, meets the whole kernel.
        voxels = (inputs[0] if getattr(layer, "transposed", False) else output)[:, 0].numel()
        flops = 2 * voxels * layer.weight.numel()
        found[key] = (layer, found[key][1] + 1 if key in found else 1, flops)

    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.modules.conv._ConvNd)]
    hooks = [layer.register_forward_hook(note) for layer in convolutions]
    network(windows)
    for hook in hooks:
        hook.remove()
    return [_timed(shape, *what, windows.device) for (*_, shape), what in found.items()]


def _timed(shape: tuple[int, ...], layer: Any, times: int, flops: int, device: torch.device) -> dict[str, Any]:
    best = float("inf")
    for dtype in TYPES.values():
        for layout in (torch.contiguous_format, LAYOUTS[layer.weight.dim()]):
            x = torch.randn(shape, device=device).to(dtype=dtype, memory_format=layout)
            alone = copy.deepcopy(layer).to(dtype=dtype, memory_format=layout)
            with torch.autocast(device.type, enabled=False):  # the caller's would leave no float32
                best = min(best, seconds(lambda alone=alone, x=x: alone(x), device))  # type: ignore[misc]
    return {
        "kind": type(layer).__name__,
        "in": layer.in_channels,
        "out": layer.out_channels,
        "kernel": list(layer.kernel_size),
        "input": list(shape),
        "times": times,
        "flops": flops,
        "seconds": best,
    }
