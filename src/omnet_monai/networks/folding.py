"""Batch normalization folded into the convolutions before it: the same function, a third of its layers gone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from monai.networks.blocks import Convolution
from torch import nn
from torch.nn.functional import linear
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ["LAYOUTS", "folded"]

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The memory format that convolutions of 2-D and 3-D images are fastest in, by a tensor's number of dimensions."""


@torch.no_grad()
def folded(network: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """
    Copy a network for inference. In MONAI's ``Convolution`` blocks whose batch normalization comes right after the
    convolution, its running statistics and affine terms move into that convolution, and a ReLU after it works in place.

    Args:
        network: any network, left as it is.
        dtype: type to keep the convolutions' weights in, such as ``torch.bfloat16``, so that autocast need not cast
            them for each window; ``None`` for the type they have. Those of kernel size 1, which the heads end in, stay
            in float32 then, whatever autocast says: they are a hundredth of the work, and half of the rounding.

    Returns:
        The copy, without the normalization and with weights in the channels-last memory format, not for training; what
        folding does not change, it shares with the network. The network itself if it has nothing to fold.
    """
    if not any(map(_folds, network.modules())):
        return network
    network = _shallow_copy(network)
    blocks: list[Any] = [block for block in network.modules() if _folds(block)]
    for block in blocks:
        _take_over(block.conv, block.adn.N, block.is_transposed)
        del block.adn.N
        if isinstance(getattr(block.adn, "A", None), nn.ReLU):  # no other: its input might be needed once more
            block.adn.A.inplace = True
    if dtype:
        _keep_pointwise(network)
    for layer in network.modules():
        if isinstance(layer, _ConvNd):
            weight = layer.weight.to(dtype=dtype, memory_format=LAYOUTS[layer.weight.dim()])
            layer.weight = nn.Parameter(weight, requires_grad=False)
            layer.bias = None if layer.bias is None else nn.Parameter(layer.bias.to(dtype=dtype), requires_grad=False)
    return network


class _Pointwise(nn.Module):
    """A convolution of kernel size 1 in float32, under autocast too: as a product of matrices it is fast there."""

    def __init__(self, conv: _ConvNd) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.flatten(1).float(), requires_grad=False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.float(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return linear(x.float().movedim(1, -1), self.weight, self.bias).movedim(-1, 1)


def _shallow_copy(module: nn.Module) -> nn.Module:
    """Copy a tree of modules, but not its parameters, buffers and hooks, for which a deep copy takes tens of ms."""
    twin = copy.copy(module)
    twin._parameters, twin._buffers = dict(module._parameters), dict(module._buffers)
    twin._modules = {name: child if child is None else _shallow_copy(child) for name, child in module._modules.items()}
    return twin


def _take_over(conv: _ConvNd, norm: _BatchNorm, transposed: bool) -> None:
    """Give a convolution new weights that do what the normalization after it does."""
    mean: Any = norm.running_mean  # which a norm that folds tracks
    variance: Any = norm.running_var
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias, transposed
    )


def _keep_pointwise(network: nn.Module) -> None:
    """Let convolutions of kernel size 1 compute in float32."""
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if not isinstance(layer, (nn.Conv2d, nn.Conv3d)) or any(layer.padding):
                continue
            if {*layer.kernel_size, *layer.stride, layer.groups} == {1}:
                setattr(parent, name, _Pointwise(layer))


def _folds(block: Any) -> bool:
    """Tell whether a block's convolution is followed at once by batch normalization with statistics of its own."""
    steps: Any = getattr(block, "adn", None) if isinstance(block, Convolution) else None
    name, norm = next(steps.named_children(), ("", None)) if steps else ("", None)
    return name == "N" and isinstance(norm, _BatchNorm) and norm.track_running_stats
