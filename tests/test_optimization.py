"""Gradient clipping and the release's way of training."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from monai.optimizers import WarmupCosineSchedule
from torch import nn

from omnet_monai.networks import OMNet
from omnet_monai.optimization import (
    CorrectedBatchNorm,
    DivergenceCheck,
    GradientClipping,
    RepeatedWarmupCosine,
    parameter_groups,
)


def test_biases_learn_twice_as_fast_and_those_of_convolutions_do_not_decay() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    weights, conv_biases, shifts = parameter_groups(network, lr=0.5, weight_decay=0.25)
    assert [p is q for p, q in zip(weights["params"], [network[0].weight, network[1].weight], strict=True)] == [
        True
    ] * 2
    assert conv_biases["params"][0] is network[0].bias
    assert shifts["params"][0] is network[1].bias
    assert [group["lr"] for group in (weights, conv_biases, shifts)] == [0.5, 1.0, 1.0]
    assert [group["weight_decay"] for group in (weights, conv_biases, shifts)] == [0.25, 0.0, 0.25]


def test_every_parameter_is_in_one_group() -> None:
    network = OMNet(features=(2, 2, 2, 2), class_counts=(4, 4, 2))
    grouped = [p for group in parameter_groups(network, 0.1, 0.1) for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(network.parameters()))


def test_running_statistics_are_the_corrected_average_that_caffe_keeps() -> None:
    # With decay 0.5 the batch means 1, 2, 4 weigh 1/4, 1/2 and 1, over their sum 7/4: (1/4 + 1 + 4) / (7/4) = 3.
    network = nn.Sequential(nn.BatchNorm1d(1))
    handler = CorrectedBatchNorm(network, decay=0.5)
    engine = Engine(lambda engine, batch: network(batch))
    handler.attach(engine)
    engine.run([torch.tensor([[mean - 1.0], [mean + 1.0]]) for mean in (1.0, 2.0, 4.0)])
    assert network[0].running_mean.item() == pytest.approx(3.0)


def test_a_layer_that_joins_later_begins_its_own_average() -> None:
    # It sees the batch means 2 and 4 alone, which weigh 1/2 and 1, over their sum 3/2: 5 / (3/2) = 10/3.
    network = nn.ModuleList([nn.BatchNorm1d(1), nn.BatchNorm1d(1)])
    engine = Engine(lambda engine, batch: [norm(batch) for norm in network[: engine.state.iteration]])
    CorrectedBatchNorm(network, decay=0.5).attach(engine)
    engine.run([torch.tensor([[mean - 1.0], [mean + 1.0]]) for mean in (1.0, 2.0, 4.0)])
    assert network[0].running_mean.item() == pytest.approx(3.0)
    assert network[1].running_mean.item() == pytest.approx(10 / 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_a_network_that_diverges_ends_the_run_before_it_is_kept(name: str, value: float) -> None:
    network, kept = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), []
    engine = Engine(
        lambda engine, batch: engine.state.epoch == 2 and network.state_dict()[name].view(-1)[1].fill_(value)
    )
    DivergenceCheck(network).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: kept.append(engine.state.epoch))
    with pytest.raises(ValueError, match=rf"finite numbers after epoch 2, {name} and 0 others do not: try a lower"):
        engine.run([0], max_epochs=3)
    assert kept == [1]


def test_gradients_are_scaled_down_to_the_largest_norm_together() -> None:
    network = nn.Linear(1, 1)
    network.weight.grad, network.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])  # norm 5
    GradientClipping(network, max_norm=1.0)(SimpleNamespace(scaler=None))
    torch.testing.assert_close(network.weight.grad, torch.tensor([[0.6]]))
    torch.testing.assert_close(network.bias.grad, torch.tensor([0.8]))


def test_gradients_that_a_scaler_has_enlarged_are_measured_at_their_own_size() -> None:
    network = nn.Linear(1, 1)
    network.weight.grad, network.bias.grad = torch.tensor([[30.0]]), torch.tensor([40.0])  # norm 5, ten times

    class Scaler:
        def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad /= 10

    trainer = SimpleNamespace(scaler=Scaler(), optimizer=torch.optim.SGD(network.parameters(), lr=1.0))
    GradientClipping(network, max_norm=6.0)(trainer)
    assert (network.weight.grad.item(), network.bias.grad.item()) == (3.0, 4.0)


def test_smaller_gradients_stay_as_they_are() -> None:
    network = nn.Linear(1, 1)
    network.weight.grad, network.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
    GradientClipping(network, max_norm=6.0)(SimpleNamespace(scaler=None))
    assert network.weight.grad.item() == 3.0


def test_each_round_of_a_federated_client_takes_the_same_rates() -> None:
    # A cosine from 1 to 0 over 4 steps, at its quarters: (1 + cos(45 degrees)) / 2 = 0.853553, and so on.
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = RepeatedWarmupCosine(optimizer, warmup_steps=2, t_total=6)
    rates = []
    for _ in range(3 * 6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0, 0.5, 1, 0.853553, 0.5, 0.146447] * 3, abs=1e-6)


def test_one_run_takes_the_rates_of_monais_schedule() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    ours, theirs = (
        kind(optimizer, warmup_steps=3, t_total=50) for kind in (RepeatedWarmupCosine, WarmupCosineSchedule)
    )
    assert [ours.lr_lambda(step) for step in range(50)] == [theirs.lr_lambda(step) for step in range(50)]
