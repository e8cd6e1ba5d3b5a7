"""What a network costs, by independent counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from monai.inferers import SimpleInferer
from torch import nn

from omnet_monai import cost
from omnet_monai.cost import NetworkCost, Passes, machine
from omnet_monai.inferers import AutocastInferer
from omnet_monai.networks import ModelCascade, OMNet

SMALL = {"class_counts": (4, 4, 2), "features": (2, 2, 4, 4)}


def evaluate(network: nn.Module, path: Path, cases: int = 2, windows: int = 3) -> dict[str, float]:
    """Run windows of 16 x 8 x 8 of some cases, in two batches each, and read what it cost."""
    network.eval()

    @torch.no_grad()
    def step(engine: Engine, batch: list[torch.Tensor]) -> None:
        for image in batch:
            network(image[:1])
            network(image[1:])

    engine = Engine(step)
    NetworkCost(network, path).attach(engine)
    batches = [[torch.randn(windows, 4, 16, 8, 8, generator=torch.Generator().manual_seed(n))] for n in range(cases)]
    for _ in range(2):  # a second evaluation counts anew
        engine.run(batches)
    return json.loads(path.read_text())


def multiply_adds(network: nn.Module) -> int:
    """Sum up the multiply-adds of one window over its convolutions: per output voxel, of a deconvolution per input."""
    total = 0

    def count(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal total
        voxels = args[0] if isinstance(module, nn.ConvTranspose3d) else output
        total += module.weight.numel() * voxels[0, 0].numel()

    convs = [module for module in network.modules() if isinstance(module, nn.Conv3d | nn.ConvTranspose3d)]
    hooks = [conv.register_forward_hook(count) for conv in convs]
    with torch.no_grad():
        network(torch.zeros(1, 4, 16, 8, 8))
    for hook in hooks:
        hook.remove()
    return total


def test_one_pass_costs_its_convolutions_times_the_windows(tmp_path: Path) -> None:
    network = OMNet(**SMALL, attention="none")
    cost = evaluate(network, tmp_path / "cost.json")
    assert cost["parameters"] == sum(p.numel() for p in network.parameters())
    assert cost["passes_per_window"] == 1
    assert cost["flops_per_case"] == 2 * multiply_adds(network) * 3
    assert cost["seconds_per_case"] > 0
    assert not network._forward_hooks  # nothing stays behind
    assert not network._forward_pre_hooks


def test_a_cascade_costs_as_much_as_its_networks_together(tmp_path: Path) -> None:
    cascade = ModelCascade(**SMALL).eval()
    cost = evaluate(cascade, tmp_path / "cost.json")
    assert cost["passes_per_window"] == 3
    assert cost["flops_per_case"] == 2 * 3 * sum(multiply_adds(network) for network in cascade.networks)


@torch.no_grad()
def test_windows_that_a_cascade_skips_cost_nothing(tmp_path: Path) -> None:
    cascade = ModelCascade(**SMALL, skip=True).eval()
    final = cascade.networks[0].heads[0].final.conv
    final.weight.zero_()
    final.bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0]))  # no tumor anywhere
    cost = evaluate(cascade, tmp_path / "cost.json")
    assert cost["passes_per_window"] == 1
    assert cost["flops_per_case"] == 2 * 3 * multiply_adds(cascade.networks[0])


def test_time_is_that_inside_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(cost, "_now", lambda x: next(clock))
    assert evaluate(OMNet(**SMALL), tmp_path / "cost.json")["seconds_per_case"] == 2 * 5  # two calls for each case


def test_the_machine_is_named_with_its_threads_and_torch() -> None:
    assert f", {torch.get_num_threads()} threads" in machine()
    assert f", torch {torch.__version__}, " in machine()


def test_the_copies_that_an_inferer_runs_are_counted_as_their_network_and_not_kept() -> None:
    network = OMNet(**SMALL, attention="none").eval()
    passes = Passes(network)
    inferer = AutocastInferer(SimpleInferer(), amp=False, skip_empty=False)
    with torch.no_grad():
        for _ in range(3):
            inferer(torch.ones(2, 4, 16, 8, 8), network)
    assert [part for part, _ in passes.passes] == [network]
    assert passes.flops() == 2 * multiply_adds(network) * 6
