"""Separate networks, coarse to fine: what limits what, by networks that answer the same everywhere or by brightness."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from omnet_monai.networks import ModelCascade, OMNet
from omnet_monai.regions import TASKS
from omnet_monai.weights import ModelFile, StrictCheckpointLoader

SMALL = {"class_counts": (4, 4, 2), "features": (2, 2, 4, 4)}
# Shares of background, necrosis, edema, enhancing; of the rest and enhancing.
SHARES = {"coarse": [0.1, 0.3, 0.4, 0.2], "refined": [0.2, 0.2, 0.1, 0.5], "precise": [0.2, 0.8]}


class Shares(nn.Module):
    """Stands in for a head: its task's shares where the first sequence is above a limit, background below."""

    def __init__(self, shares: list[float], limit: float) -> None:
        super().__init__()
        self.shares, self.limit = torch.tensor(shares), limit
        self.background = torch.tensor([1.0, *[0.0] * (len(shares) - 1)])
        self.image = torch.zeros(0)

    def forward(self, features: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        inside, outside = (
            shares.clamp(min=1e-9).log().reshape(1, -1, 1, 1, 1) for shares in (self.shares, self.background)
        )
        return torch.where(self.image > self.limit, inside, outside)


def make_cascade(limits: dict[str, float], **kwargs) -> ModelCascade:
    """A cascade whose networks see their classes where the first sequence is above their limits."""
    cascade = ModelCascade(tasks=list(limits), **SMALL, **kwargs).eval()
    for network, (name, limit) in zip(cascade.networks, limits.items(), strict=True):
        head = Shares(SHARES[name], limit)
        network.heads[0] = head
        network.register_forward_pre_hook(lambda module, args, head=head: setattr(head, "image", args[0][:, :1]))
    return cascade


def bright_at(*values: tuple[int, float], length: int = 24) -> torch.Tensor:
    """One window of 8 x 8 x length, dark but for planes of the given brightness."""
    x = torch.zeros(1, 4, 8, 8, length)
    for plane, value in values:
        x[..., plane] = value
    return x


def planes(region: torch.Tensor) -> list[int]:
    """Planes in which a region is anything but 0."""
    return (region.float().amax((0, 1)) > 1e-6).nonzero()[:, 0].tolist()


def count_windows(cascade: ModelCascade) -> list[int]:
    """The number of windows each network sees from now on, which grows."""
    windows = [0] * len(cascade.networks)

    def count(index: int, x: torch.Tensor) -> None:
        windows[index] += len(x)

    for index, network in enumerate(cascade.networks):
        network.register_forward_pre_hook(lambda module, args, index=index: count(index, args[0]))
    return windows


def test_a_cascade_of_three_is_three_networks_of_one_task() -> None:
    with torch.device("meta"):
        cascade = ModelCascade()
    sizes = [sum(p.numel() for p in network.parameters()) for network in cascade.networks]
    assert sizes == [13_823_493, 13_823_493, 13_823_394]  # together 41.470 million, the paper's cascade of three
    assert [len(network.heads) for network in cascade.networks] == [1, 1, 1]


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (["coarse"], (0.9, 0.5, 0.2)),
        (["coarse", "refined"], (0.8, 0.7, 0.5)),
        (["coarse", "refined", "precise"], (0.8, 0.7, 0.8)),
    ],
    ids=["MC1", "MC2", "MC3"],
)
@torch.no_grad()
def test_each_network_replaces_the_regions_that_its_classes_make_up(
    tasks: list[str], expected: tuple[float, ...]
) -> None:
    cascade = make_cascade(dict.fromkeys(tasks, -1.0))
    regions = cascade(bright_at())
    assert regions.dtype == torch.float32
    torch.testing.assert_close(regions, torch.tensor(expected).reshape(1, 3, 1, 1, 1).expand(1, 3, 8, 8, 24))


@pytest.mark.parametrize("dilation", [0, 1, 3], ids=str)
@torch.no_grad()
def test_a_later_network_counts_inside_the_dilated_region_alone(dilation: int) -> None:
    # The coarse network finds planes 10 and 11; the refined one would find all.
    cascade = make_cascade({"coarse": 0.5, "refined": -1.0}, dilation=dilation)
    regions = cascade(bright_at((10, 1.0), (11, 1.0)))
    reached = list(range(10 - dilation, 12 + dilation))
    for region in regions[0]:
        assert planes(region) == reached
    torch.testing.assert_close(regions[0, 0, ..., 10], torch.full((8, 8), 0.8))


@torch.no_grad()
def test_enhancing_tumor_is_looked_for_around_the_core_not_around_the_whole_tumor() -> None:
    # Whole tumor in planes 4 to 20, core in plane 12 alone.
    x = bright_at(*((plane, 1.0) for plane in range(4, 21)))
    x[..., 12] = 2.0
    cascade = make_cascade({"coarse": 0.5, "refined": 1.5, "precise": -1.0}, dilation=2)
    cascade.networks[1].heads[0].background = torch.tensor([0.2, 0.1, 0.6, 0.1])
    whole, core, enhancing = cascade(x)[0]
    assert planes(whole > 0.5) == list(range(2, 23))
    assert planes(core > 0.5) == [12]
    assert planes(enhancing) == [10, 11, 12, 13, 14]


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [((0.8, 0.6, 0.5), (0.8, 0.7, 0.8)), ((0.8, 0.75, 0.5), (0.8, 0.7, 0.0)), ((0.95, 0.6, 0.5), (0.0, 0.0, 0.0))],
    ids=["both found", "no core at its threshold", "no tumor at its threshold"],
)
@torch.no_grad()
def test_each_region_limits_the_next_network_by_its_own_threshold(
    thresholds: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    # The coarse network gives WT 0.9, the refined one TC 0.7, the precise one ET 0.8.
    cascade = make_cascade(dict.fromkeys(("coarse", "refined", "precise"), -1.0), thresholds=thresholds)
    regions = cascade(bright_at())
    torch.testing.assert_close(regions, torch.tensor(expected).reshape(1, 3, 1, 1, 1).expand(1, 3, 8, 8, 24))


@torch.no_grad()
def test_dilation_goes_along_every_axis() -> None:
    x = torch.zeros(1, 4, 8, 8, 8)
    x[..., 4, 4, 4] = 1
    whole = make_cascade({"coarse": 0.5, "refined": -1.0}, dilation=1)(x)[0, 0]
    assert int((whole > 1e-6).sum()) == 27


@torch.no_grad()
def test_windows_without_the_region_are_skipped_on_request_and_nothing_else_changes() -> None:
    x = torch.cat([bright_at(), bright_at((3, 1.0)), bright_at(), bright_at((7, 2.0))])
    limits = {"coarse": 0.5, "refined": 1.5, "precise": 1.5}
    everywhere, skipping = make_cascade(limits), make_cascade(limits, skip=True)
    counts, fewer = count_windows(everywhere), count_windows(skipping)
    torch.testing.assert_close(skipping(x), everywhere(x))
    assert counts == [4, 4, 4]
    assert fewer == [4, 2, 1]  # tumor in two windows, core in one
    skipping(bright_at())
    assert fewer == [5, 2, 1]


@torch.no_grad()
def test_output_is_fresh_memory() -> None:
    cascade, x = ModelCascade(**SMALL).eval(), torch.randn(2, 4, 8, 8, 8)
    kept, first = x.clone(), cascade(x)
    before = first.clone()
    cascade(x).zero_()
    assert torch.equal(first, before)
    assert torch.equal(x, kept)


def test_a_cascade_in_training_is_refused() -> None:
    with pytest.raises(ValueError, match="must be trained one by one, got a cascade in training mode"):
        ModelCascade(**SMALL)(torch.zeros(1, 4, 8, 8, 8))


@pytest.mark.parametrize(("dilation", "skip"), [(-1, False), (5, "false")], ids=["negative", "a text"])
def test_arguments_out_of_range_are_refused(dilation: int, skip: bool) -> None:
    with pytest.raises(ValueError, match=f"dilation must be 0 or more and skip True or False, got {dilation} and "):
        ModelCascade(dilation, skip, **SMALL)


def test_each_network_of_a_cascade_is_loaded_from_its_own_file(tmp_path: Path) -> None:
    paths = [tmp_path / task.name / "model.pt" for task in TASKS]
    networks = [OMNet(tasks=[task.name], **SMALL) for task in TASKS]
    for path, network in zip(paths, networks, strict=True):
        ModelFile(path, network).save()
    cascade, engine = ModelCascade(**SMALL), Engine(lambda engine, batch: None)
    StrictCheckpointLoader(paths, cascade).attach(engine)
    engine.run([0])
    for loaded, network in zip(cascade.networks, networks, strict=True):
        bias = "backbone.encoders.0.0.conv.bias"
        assert torch.equal(loaded.state_dict()[bias], network.state_dict()[bias])
        weight = "backbone.encoders.1.0.conv.weight"
        torch.testing.assert_close(loaded.state_dict()[weight], network.state_dict()[weight].half().float())
    assert engine.state.weights == paths


@pytest.mark.parametrize("number", [2, 4], ids=["too few", "too many"])
def test_as_many_files_as_networks_are_asked_for(number: int) -> None:
    with pytest.raises(ValueError, match="one file for each of the 3 networks of a cascade, got a"):
        StrictCheckpointLoader(["a", "b", "c", "d"][:number], ModelCascade(**SMALL))


def test_files_for_a_network_that_is_no_cascade_are_refused() -> None:
    with pytest.raises(ValueError, match="each of the 0 networks"):
        StrictCheckpointLoader(["a"], OMNet(**SMALL))
