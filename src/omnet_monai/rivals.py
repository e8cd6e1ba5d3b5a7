"""What OM-Net's inference is timed against: its own plain path and each step away from it, and other networks."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from monai.inferers import Inferer, SlidingWindowInferer
from monai.networks.nets import DynUNet, SegResNet
from monai.transforms import DivisiblePad
from torch import nn

from omnet_monai.inferers import AutocastInferer, MirroringInferer
from omnet_monai.networks import ModelCascade, OMNet

__all__ = ["Rival", "every_window", "own_paths", "rivals"]


@dataclass(frozen=True)
class Rival:
    """
    One row of a benchmark.

    Attributes:
        name: of the row.
        network: what runs on a window, in evaluation mode.
        inferer: what cuts a volume into windows.
        whole: whether it takes the whole volume instead of the brain's box.
        trained: whether its weights are, so that its Dice means something.
        slow: whether once is enough.
    """

    name: str
    network: nn.Module
    inferer: Inferer
    whole: bool = False
    trained: bool = False
    slow: bool = False


def every_window(default: AutocastInferer) -> AutocastInferer:
    """Return the same inferer without its search for tumor: it runs every window that has brain."""
    inferer = copy.copy(default)
    inferer.search = 0
    return inferer


def own_paths(network: nn.Module, default: AutocastInferer) -> list[Rival]:
    """
    List the way from MONAI's plain sliding window to a bundle's inferer, one step after the other.

    Args:
        network: the trained network.
        default: the bundle's ``inferer``.
    """
    window: Any = default.inferer

    def sliding(sw_batch_size: int = 4, overlap: Any = 0.5) -> SlidingWindowInferer:
        return SlidingWindowInferer(window.roi_size, sw_batch_size, overlap, mode=window.mode)

    def cast(inferer: Inferer, amp: bool = True, fold: bool = True, skip_empty: bool = True) -> AutocastInferer:
        return AutocastInferer(inferer, amp, fold, skip_empty)

    steps = [
        ("plain", sliding()),
        ("+ brain's box", sliding()),
        ("+ channels last", cast(sliding(), False, False, False)),
        ("+ bfloat16", cast(sliding(), True, False, False)),
        ("+ folded", cast(sliding(), True, True, False)),
        ("+ empty windows left out", cast(sliding())),
        (f"+ overlap {window.overlap}", cast(sliding(overlap=window.overlap))),
        (f"+ batches of {window.sw_batch_size}", every_window(default)),
    ]
    if default.search:
        steps.append((f"+ search by {default.search:g}", default))
    steps[-1] = f"{steps[-1][0]}: the default", default
    return [Rival(name, network, run, name == "plain", True, place < 2) for place, (name, run) in enumerate(steps)]


def rivals(network: OMNet, default: AutocastInferer) -> list[Rival]:
    """
    List other networks, each with the inference it was published with. Their weights are random, except that the
    cascades find tumor where the given network's coarse task does.

    Args:
        network: the trained network.
        default: the bundle's ``inferer``.

    Returns:
        OM-Net without attention; MC3 with all networks on every window and on those that touch what the network before
        found; the model zoo's SegResNet in its own window and under our conditions; the network that nnU-Net plans for
        BraTS (as MONAI's ``DynUNet``) in its own windows, without and with mirroring. None searches for tumor first:
        OM-Net on the same windows is the row before the last of :func:`own_paths`.
    """
    zoo = SegResNet(3, 16, 4, 3, 0.2, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1))
    window = SlidingWindowInferer((240, 240, 160), 1, 0.5)
    unet = DynUNet(3, 4, 3, [3] * 6, [1, 2, 2, 2, 2, 2], [2] * 5, (32, 64, 128, 256, 320, 320), act_name="leakyrelu")
    # nnU-Net runs over the box of what is not 0: in float32 on a CPU, in half precision on a GPU.
    tiles: Inferer = SlidingWindowInferer((128, 128, 128), 1, 0.5, mode="gaussian")
    device = next(network.parameters()).device
    if device.type == "cuda":
        tiles = AutocastInferer(tiles, fold=False, skip_empty=False)
    ours = every_window(default)
    rows = [
        Rival("OM-Net", _like(network, OMNet, attention="none"), ours),
        Rival("MC3, every window", _finding(network, _like(network, ModelCascade, skip=False)), ours),
        Rival("MC3, windows found", _finding(network, _like(network, ModelCascade, skip=True)), ours),
        Rival("SegResNet, published window, float32", zoo, window, whole=True),
        Rival("SegResNet, published window, bfloat16", zoo, AutocastInferer(window, fold=False), whole=True),
        Rival("SegResNet, brain's box, bfloat16", zoo, AutocastInferer(_OneWindow())),
        Rival("nnU-Net's network", unet, tiles, slow=True),
        Rival("nnU-Net's network, mirrored", unet, MirroringInferer(tiles, (0, 1, 2)), slow=True),
    ]
    for row in rows:
        row.network.to(device).eval()
    return rows


class _OneWindow(Inferer):
    """Run a network once on a whole volume, padded to sides that can be halved three times."""

    def __call__(self, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Any:
        padded = DivisiblePad(8, method="end")(inputs[0])[None]
        results = network(padded, *args, **kwargs).float()
        return results[:, :, *(slice(side) for side in inputs.shape[2:])]


def _like(network: OMNet, kind: type[nn.Module], **arguments: Any) -> Any:
    """Make a network of the same channels and classes."""
    # The last parameter of a level or a head is the bias of its last layer.
    features, counts = (
        [len(list(part.parameters())[-1]) for part in parts] for parts in (network.backbone.encoders, network.heads)
    )
    return kind(class_counts=counts, features=features, **arguments)


def _finding(network: OMNet, cascade: ModelCascade) -> ModelCascade:
    """Give the coarse task's weights to the cascade's first two networks, whose shapes they have."""
    coarse = {
        name: value for name, value in network.state_dict().items() if not name.startswith(("heads.1", "heads.2"))
    }
    for single in cascade.networks[:2]:
        single.load_state_dict(coarse)
    return cascade
