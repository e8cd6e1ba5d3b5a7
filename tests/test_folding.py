"""Folding batch normalization: the same function from fewer layers, and a network left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.blocks import Convolution
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from omnet_monai.networks import OMNet, folded
from omnet_monai.networks.blocks import ComplementarySegmentation


def trained_network(spatial_dims: int = 3, **arguments) -> OMNet:
    """A small network whose running statistics and affine terms are not those it starts from."""
    torch.manual_seed(0)
    network = OMNet(spatial_dims, class_counts=(4, 4, 2), features=(4, 6, 8, 10), **arguments).eval()
    for norm in network.modules():
        if isinstance(norm, _BatchNorm):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    return network


def image(*spatial: int) -> torch.Tensor:
    return torch.randn((2, 4, *spatial), generator=torch.Generator().manual_seed(1))


def test_a_convolution_takes_over_what_its_normalization_does() -> None:
    # 2 x + 1, normalized with mean 3 and variance 4 and scaled by 6, moved by 5: 6 (2 x + 1 - 3) / 2 + 5 = 6 x - 1.
    block = Convolution(3, 1, 1, kernel_size=1, adn_ordering="N", norm=("batch", {"eps": 0.0})).eval()
    values = {"conv.weight": 2, "conv.bias": 1, "adn.N.running_mean": 3, "adn.N.running_var": 4}
    state = block.state_dict() | {"adn.N.weight": torch.tensor([6.0]), "adn.N.bias": torch.tensor([5.0])}
    block.load_state_dict(state | {name: torch.full_like(state[name], value) for name, value in values.items()})
    conv = folded(nn.Sequential(block))[0].conv
    assert conv.weight.item() == 6
    assert conv.bias.item() == -1


@pytest.mark.parametrize("attention", ["cga", "se", "none"])
@pytest.mark.parametrize("spatial", [(16, 12, 8), (16, 12)], ids=["3-D", "2-D"])
@torch.no_grad()
def test_the_folded_network_is_the_same_function(spatial: tuple[int, ...], attention: str) -> None:
    network, x = trained_network(len(spatial), attention=attention).double(), image(*spatial).double()
    # The network's probabilities are float32 whatever it computes in.
    torch.testing.assert_close(folded(network)(x), network(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("order", "folds"), [("NDA", True), ("ADN", False), ("DNA", False)], ids=str)
@torch.no_grad()
def test_normalization_folds_where_nothing_stands_between_it_and_the_convolution(order: str, folds: bool) -> None:
    # What a ReLU or an acting dropout left is normalized otherwise than what the convolution gave.
    torch.manual_seed(0)
    block = Convolution(3, 2, 2, adn_ordering=order, norm="batch", act="relu", dropout=0.5).eval()
    block.adn.N.running_mean.fill_(0.25)
    network, x = nn.Sequential(block), torch.randn(1, 2, 4, 4, 4)
    assert (folded(network) is not network) == folds
    torch.testing.assert_close(folded(network)(x), network(x))


def test_normalization_by_the_batch_at_hand_has_no_statistics_to_fold() -> None:
    network = nn.Sequential(Convolution(3, 1, 1, norm=("batch", {"track_running_stats": False})))
    assert folded(network) is network


class _Preactivated(nn.Module):
    """A residual block that rectifies its input before the convolution, and adds the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.conv = nn.ReLU(), Convolution(3, 1, 1, adn_ordering="NA", norm="batch", act="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(self.relu(x))


@torch.no_grad()
def test_an_activation_in_place_changes_nothing_that_is_used_again() -> None:
    network, x = _Preactivated().eval(), -torch.ones(1, 1, 4, 4, 4)
    copied = folded(network)
    assert copied.conv.adn.A.inplace
    torch.testing.assert_close(copied(x), network(-torch.ones_like(x)))


def test_no_normalization_is_left_and_the_network_stays_as_it_was() -> None:
    network = trained_network()
    before, modules = copy.deepcopy(network.state_dict()), str(network)
    copied = folded(network, torch.bfloat16)
    assert not [layer for layer in copied.modules() if isinstance(layer, _BatchNorm)]
    types = {name: parameter.dtype for name, parameter in copied.named_parameters()}
    pointwise = {name for name, dtype in types.items() if dtype != torch.bfloat16}
    assert {name.rsplit(".", 1)[0] for name in pointwise} == {
        "heads.0.final.conv",
        *(f"heads.{head}.segmentation.{part}" for head in (1, 2) for part in ("parts.0", "parts.1", "final")),
    }
    assert {types[name] for name in pointwise} == {torch.float32}
    assert str(network) == modules
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("conv", [nn.Conv2d, nn.Conv3d], ids=["2-D", "3-D"])
@torch.no_grad()
def test_a_layer_of_single_voxels_keeps_what_bfloat16_cannot_hold(conv: type[nn.Conv2d] | type[nn.Conv3d]) -> None:
    # 1 + 2 ** -9 lies between two bfloat16 numbers, 1 and 1 + 2 ** -7. With inputs 1 and 3: 1 + 2 ** -9 + 3 * 3 + 0.5.
    last = conv(2, 1, 1)
    dims = len(last.kernel_size)
    last.weight.copy_(torch.tensor([1 + 2**-9, 3.0]).view(1, 2, *[1] * dims))
    last.bias.fill_(0.5)
    block = Convolution(dims, 2, 2, adn_ordering="N", norm="batch")
    x = torch.stack([torch.ones([2] * dims), torch.full([2] * dims, 3.0)])[None].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = folded(nn.Sequential(block.eval(), last), torch.bfloat16)[1](x)
    assert out.shape == (1, 1, *[2] * dims)
    assert out.dtype == torch.float32
    assert (out == 1 + 2**-9 + 9 + 0.5).all()


@torch.no_grad()
def test_a_layer_of_single_voxels_with_padding_stays_a_convolution() -> None:
    last = nn.Conv3d(1, 1, 1, padding=1)
    network = nn.Sequential(Convolution(3, 1, 1, norm="batch").eval(), last)
    assert folded(network, torch.bfloat16)[1](torch.zeros(1, 1, 2, 2, 2, dtype=torch.bfloat16)).shape[2:] == (4, 4, 4)


@torch.no_grad()
def test_attention_does_not_round_between_its_last_two_layers() -> None:
    segmentation = ComplementarySegmentation(3, 1, 1, categories=1)
    for layer, weight in ((segmentation.parts[0], 1 + 2**-9), (segmentation.final, 1.0)):
        nn.init.constant_(layer.weight, weight)
        nn.init.zeros_(layer.bias)
    copied = folded(nn.Sequential(Convolution(3, 1, 1, norm="batch").eval(), segmentation), torch.bfloat16)[1]
    features = torch.ones(1, 1, 2, 2, 2, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = copied(features, features.float(), torch.ones(1, 1, 1))
    assert (out.double() == 1 + 2**-9).all()  # bfloat16 would have 1


def test_hooks_of_the_network_watch_the_copy() -> None:
    class Watch:
        seen = 0

        def __call__(self, *_: object) -> None:
            self.seen += 1

    network, watch = trained_network(), Watch()
    hook = network.register_forward_hook(watch)
    folded(network)(image(8, 8, 8))
    assert watch.seen == 1
    hook.remove()
    folded(network)(image(8, 8, 8))
    assert watch.seen == 1


def test_dropout_that_acts_goes_on_acting() -> None:
    network = trained_network()
    network.backbone.dropout.train()
    copied = folded(network)
    assert copied.backbone.dropout.training
    assert not copied.training


def test_a_network_without_normalization_to_fold_is_itself() -> None:
    network = nn.Sequential(nn.Conv3d(1, 1, 1), nn.BatchNorm3d(1))
    assert folded(network) is network


def test_what_folding_does_not_change_is_not_copied() -> None:
    # The heads end in bare convolutions, whose biases pass on as they are where the type stays.
    network = nn.Sequential(trained_network(), nn.Linear(2, 2), nn.BatchNorm1d(2))
    copied = folded(network)
    assert copied[1].weight is network[1].weight
    assert copied[2].running_mean is network[2].running_mean
    assert copied[1] is not network[1]
