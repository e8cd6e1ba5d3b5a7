"""The network: its size and shape, cross-task guided attention by hand, which parts learn, and what it returns."""

from __future__ import annotations

import copy
import inspect
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from omnet_monai.losses import OMNetLoss
from omnet_monai.networks import (
    CategoryChannelImportance,
    ComplementarySegmentation,
    CrossTaskGuidedAttention,
    FusionNet,
    FusionResidualBlock,
    OMNet,
    in_attention,
)

ATTENTIONS = ("cga", "se", "none")
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.99, weight_decay=5e-4),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1),
}
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def small_network(attention: str = "cga", seed: int = 0, **kwargs) -> OMNet:
    torch.manual_seed(seed)
    return OMNet(**{"class_counts": (4, 4, 2), "features": (4, 6, 8, 10), "attention": attention} | kwargs)


def meta_network(**kwargs) -> OMNet:
    """The network in full size, without memory or numbers."""
    with torch.device("meta"):
        return OMNet(**kwargs)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def randomize_norms(network: nn.Module) -> None:
    """Give every batch norm statistics and an affine map that show if it is missing or misplaced."""
    torch.manual_seed(3)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm3d):
            nn.init.normal_(norm.running_mean, std=0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias, std=0.5)


def set_constant(head: nn.Module, shares: list[float]) -> None:
    """Let a head answer with these class shares at every voxel, whatever it sees."""
    final = head.segmentation.final if isinstance(head, CrossTaskGuidedAttention) else head.final.conv
    nn.init.zeros_(final.weight)
    with torch.no_grad():
        final.bias.copy_(torch.tensor(shares).log())


def kinds(module: nn.Module) -> Counter:
    return Counter(type(m).__name__ for m in module.modules() if not list(m.children()))


@pytest.mark.parametrize(
    ("attention", "tasks", "expected"),
    [
        ("none", None, 13_879_212),
        ("cga", None, 13_823_991),
        ("se", None, 13_879_698),
        ("none", ["coarse"], 13_823_493),
        ("none", ["refined"], 13_823_493),
        ("none", ["precise"], 13_823_493 - 3 * 33),  # two classes instead of five
        ("cga", ["refined"], 13_823_493),
    ],
    ids=["OM-Net", "OM-Net+CGA", "OM-Net+SE", "coarse", "refined", "precise", "refined, attention idle"],
)
def test_trainable_parameters_are_those_of_the_release(attention: str, tasks: list[str] | None, expected: int) -> None:
    network = meta_network(attention=attention, tasks=tasks)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize(("attention", "thousands"), [("none", 524), ("cga", 469)], ids=["OM-Net", "OM-Net+CGA"])
def test_multiply_adds_per_voxel_are_those_of_the_release(attention: str, thousands: int) -> None:
    with FlopCounterMode(display=False) as counter:
        meta_network(attention=attention)(torch.empty(1, 4, 32, 32, 16, device="meta"))
    assert round(counter.get_total_flops() / 2 / (32 * 32 * 16) / 1000) == thousands


@pytest.mark.parametrize(("level", "width"), list(enumerate((32, 64, 128, 256))), ids=["0", "1", "2", "3"])
def test_an_encoder_level_has_five_convolutions(level: int, width: int) -> None:
    encoder = meta_network().backbone.encoders[level]
    assert kinds(encoder) == {"Conv3d": 5, "BatchNorm3d": 5, "ReLU": 4}  # the residual block's last ReLU is a function
    widths = [(conv.in_channels, conv.out_channels) for conv in encoder.modules() if isinstance(conv, nn.Conv3d)]
    assert widths == [(width // 2 if level else 4, width)] + [(width, width)] * 4


@pytest.mark.parametrize(
    ("step", "width", "convolutions"), [(0, 128, 5), (1, 64, 5), (2, 32, 4)], ids=["level 2", "level 1", "level 0"]
)
def test_a_decoder_level_has_a_deconvolution_and_five_convolutions_the_last_one_four(
    step: int, width: int, convolutions: int
) -> None:
    backbone = meta_network().backbone
    up, decoder = backbone.ups[step], backbone.decoders[step]
    assert kinds(up) == {"ConvTranspose3d": 1, "BatchNorm3d": 1, "ReLU": 1}
    assert (up.conv.in_channels, up.conv.out_channels) == (2 * width, width)
    assert (up.conv.kernel_size, up.conv.stride, up.conv.padding) == ((2, 2, 2), (2, 2, 2), (0, 0, 0))
    assert kinds(decoder) == {"Conv3d": convolutions, "BatchNorm3d": convolutions, "ReLU": convolutions - 1}
    assert {(c.in_channels, c.out_channels) for c in decoder.modules() if isinstance(c, nn.Conv3d)} == {(width, width)}


@pytest.mark.parametrize(
    ("attention", "convolutions", "norms"),
    [("none", 34 + 3 * 2, 34 + 3 + 3), ("se", 34 + 3 * 2, 34 + 3 + 3), ("cga", 34 + 2 + 2 * 3, 34 + 3 + 1)],
    ids=["none", "se", "cga"],
)
def test_backbone_and_heads_have_one_module_per_layer(attention: str, convolutions: int, norms: int) -> None:
    # Backbone: 4 x 5 convolutions down, 5 + 5 + 4 up. A head has 2, of which one is normalized; a CGA head 3 and none.
    network = meta_network(attention=attention)
    found = kinds(network)
    assert (found["Conv3d"], found["ConvTranspose3d"], found["BatchNorm3d"]) == (convolutions, 3, norms)
    assert found["Linear"] == (6 if attention == "se" else 0)
    sizes = Counter(conv.kernel_size[0] for conv in network.modules() if isinstance(conv, nn.Conv3d))
    assert sizes == ({3: 35, 1: 7} if attention == "cga" else {3: 37, 1: 3})
    assert all(norm.affine and norm.eps == 1e-5 for norm in network.modules() if isinstance(norm, nn.BatchNorm3d))


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
@pytest.mark.parametrize("num_tasks", [1, 2, 3, None], ids=["1 task", "2 tasks", "3 tasks", "evaluation"])
def test_each_layer_runs_once_per_pass_and_those_of_inactive_heads_not_at_all(
    attention: str, num_tasks: int | None
) -> None:
    network = small_network(attention).train(num_tasks is not None)
    runs: Counter = Counter()
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if not list(layer.children()) and kinds(layer)["ReLU"] == 0
    }
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: runs.update([name]))
    network(normal(2, 4, 16, 16, 8), num_tasks or 1)
    inactive = tuple(f"heads.{task}." for task in range(num_tasks or 3, 3))
    expected = {name: 0 if name.startswith(inactive) else 1 for name in layers}
    expected["backbone.pool"] = 3
    assert {name: runs[name] for name in layers} == expected


def normed(layer: Convolution, x: torch.Tensor) -> torch.Tensor:
    conv, norm = layer.conv, layer[1].N
    deconv = isinstance(conv, nn.ConvTranspose3d)
    x = F.conv_transpose3d(x, conv.weight, conv.bias, 2) if deconv else F.conv3d(x, conv.weight, conv.bias, padding=1)
    shape = (1, -1, 1, 1, 1)
    x = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + 1e-5).sqrt()
    return x * norm.weight.view(shape) + norm.bias.view(shape)


def level_by_hand(level: nn.Module, x: torch.Tensor) -> torch.Tensor:
    first, inner1, inner2, inner3, *last = (m for m in level.modules() if isinstance(m, Convolution))
    x = F.relu(normed(first, x))
    x = F.relu(x + normed(inner3, F.relu(normed(inner2, F.relu(normed(inner1, x))))))
    return F.relu(normed(last[0], x)) if last else x


@torch.no_grad()
def test_the_backbone_is_what_the_table_of_layers_says() -> None:
    backbone = FusionNet(features=(4, 6, 8, 10)).eval()
    randomize_norms(backbone)
    x = image = normal(1, 4, 16, 8, 8)
    skips: list[torch.Tensor] = []
    for encoder in backbone.encoders:
        x = level_by_hand(encoder, F.max_pool3d(x, 2) if skips else x)
        skips.append(x)
    for up, decoder, skip in zip(backbone.ups, backbone.decoders, skips[-2::-1], strict=True):
        x = level_by_hand(decoder, F.relu(normed(up, x)) + skip)
    torch.testing.assert_close(backbone(image), x, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_residual_block_whose_last_norm_is_zero_is_the_rectified_input() -> None:
    block = FusionResidualBlock(3, 4).eval()
    nn.init.zeros_(block.conv3[1].N.weight)
    x = normal(1, 4, 4, 4, 4)
    torch.testing.assert_close(block(x), x.relu())


def test_weights_start_as_in_the_release() -> None:
    network = small_network(features=(32, 32, 32, 32))
    convs = [m for m in network.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)]
    assert not convs[0].bias.any()
    assert all((conv.bias == 0.1).all() for conv in convs[1:])
    # He: variance 2 / fan-in. 32 x 27 inputs, 27,648 weights.
    assert network.backbone.encoders[1][0].conv.weight.std().item() == pytest.approx((2 / 864) ** 0.5, rel=0.03)


def test_the_gain_enlarges_the_weights_of_each_categorys_convolution_alone() -> None:
    plain, gained = (small_network(attention_gain=gain).state_dict() for gain in (1, 4))
    changed = {name for name, values in plain.items() if not torch.equal(values, gained[name])}
    assert changed == {f"heads.{head}.segmentation.parts.{k}.weight" for head in (1, 2) for k in (0, 1)}
    assert all(torch.equal(gained[name], 4 * plain[name]) for name in changed)


@torch.no_grad()
def test_with_a_gain_of_the_channels_what_guided_tasks_see_matters_from_the_start_as_to_the_first() -> None:
    for gain, least, most in ((1, 0, 0.1), (32, 0.5, 4)):
        network = small_network(features=(32, 32, 32, 32), attention_gain=gain)
        first, *guided = (float(scores.std((0, 2, 3, 4)).mean()) for scores in network(normal(2, 4, 16, 16, 16)))
        assert all(least * first < spread < most * first for spread in guided)


@pytest.mark.parametrize("gain", [0, -1, float("nan")], ids=str)
def test_a_gain_that_is_not_above_zero_is_refused(gain: float) -> None:
    with pytest.raises(ValueError, match=f"attention_gain must be above 0, got {gain}"):
        meta_network(attention_gain=gain)


def test_normalization_has_the_releases_eps_and_follows_by_a_tenth_a_step() -> None:
    norms = [module for module in meta_network().modules() if isinstance(module, nn.BatchNorm3d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, 0.1)}


def test_weights_are_each_channels_share_of_a_category() -> None:
    # Two voxels per category; channel sums are (1, 3) in category 0 and (6, 2) in category 1.
    features = torch.tensor([[[1.0, 0.0, 2.0, 4.0], [0.0, 3.0, 2.0, 0.0]]])
    probs = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]])
    weights = CategoryChannelImportance()(features, probs)
    torch.testing.assert_close(weights, torch.tensor([[[0.25, 0.75], [0.75, 0.25]]]))


def test_weights_are_the_papers_sums_scaled_to_one() -> None:
    features, probs = normal(2, 6, 5, 4, 3), uniform(2, 2, 5, 4, 3)
    sums = torch.einsum("bkxyz,bcxyz->bkc", probs.double(), features.double())
    expected = sums / sums.abs().sum(2, keepdim=True)
    weights = CategoryChannelImportance()(features, probs)
    torch.testing.assert_close(weights, expected.float())
    torch.testing.assert_close(weights.abs().sum(2), torch.ones(2, 2))


@pytest.mark.parametrize("scale", [1e-4, 1e4], ids=str)
def test_weights_do_not_depend_on_the_scale_of_the_features(scale: float) -> None:
    features, probs = uniform(1, 6, 5, 4, 3, seed=4), uniform(1, 2, 5, 4, 3)
    weights = CategoryChannelImportance()
    torch.testing.assert_close(weights(features * scale, probs), weights(features, probs))


@pytest.mark.parametrize("full", [0, 1], ids=["no region", "full region"])
def test_a_category_without_mass_gets_zeros_and_finite_gradients(full: int) -> None:
    features = uniform(1, 6, 4, 4, 4).requires_grad_()
    probs = torch.zeros(1, 2, 4, 4, 4)
    probs[:, full] = 1
    weights = CategoryChannelImportance()(features, probs)
    assert not weights[0, 1 - full].any()
    assert weights[0, full].sum().item() == pytest.approx(1)
    weights.square().sum().backward()
    assert features.grad.isfinite().all()


def test_features_of_zero_get_zeros_and_finite_gradients() -> None:
    features = torch.zeros(1, 6, 4, 4, 4, requires_grad=True)
    weights = CategoryChannelImportance()(features, torch.full((1, 2, 4, 4, 4), 0.5))
    assert not weights.any()
    weights.sum().backward()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
def test_weights_of_a_patch_whose_sum_overflows_float16_are_exact(dtype: torch.dtype) -> None:
    # 16,384 voxels of 1,000: their sum is 250 times the largest float16. Channel 0 holds twice the others' value.
    features = torch.full((1, 4, 32, 32, 16), 1000.0, dtype=dtype)
    features[:, 0] *= 2
    probs = torch.ones(1, 1, 32, 32, 16, dtype=dtype)
    with torch.autocast("cpu", dtype):
        weights = CategoryChannelImportance()(features, probs)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.tensor([[[0.4, 0.2, 0.2, 0.2]]]))


def test_complementary_segmentation_by_hand() -> None:
    # Two voxels with features (1, 2) and (3, 4), weights (1, 0) outside and (1/2, 1/2) inside the region:
    # S_n = (f0 + 1, 0) = (2, 0), (4, 0) and S_p = (f0, f1 - 1) = (1, 1), (3, 3). Inside the region 1/4 and 1:
    # the join is (1.75, 0.25), (3, 3), of which final takes the sum, and the difference plus 10.
    block = ComplementarySegmentation(2, 2, 2)
    with torch.no_grad():
        for conv, weight, bias in (
            (block.parts[0], [[1.0, 0.0], [0.0, 1.0]], [1.0, 0.0]),
            (block.parts[1], [[2.0, 0.0], [0.0, 2.0]], [0.0, -1.0]),
            (block.final, [[1.0, 1.0], [1.0, -1.0]], [0.0, 10.0]),
        ):
            conv.weight.copy_(torch.tensor(weight).reshape(2, 2, 1, 1))
            conv.bias.copy_(torch.tensor(bias))
    features = torch.tensor([[1.0, 3.0], [2.0, 4.0]]).reshape(1, 2, 1, 2)
    probs = torch.tensor([[0.75, 0.0], [0.25, 1.0]]).reshape(1, 2, 1, 2)
    out = block(features, probs, torch.tensor([[[1.0, 0.0], [0.5, 0.5]]]))
    torch.testing.assert_close(out, torch.tensor([[2.0, 6.0], [11.5, 10.0]]).reshape(1, 2, 1, 2))


@pytest.mark.parametrize(("guide", "idle"), [(1.0, 0), (0.0, 1)], ids=["full region", "no region"])
def test_under_a_certain_guide_only_one_part_contributes(guide: float, idle: int) -> None:
    torch.manual_seed(0)
    block = CrossTaskGuidedAttention(3, 4, 3)
    features, guide_map = uniform(1, 4, 4, 4, 4), torch.full((1, 1, 4, 4, 4), guide)
    before = block(features, guide_map)
    before.square().sum().backward()
    parts = block.segmentation.parts
    assert not parts[idle].weight.grad.any()
    assert not parts[idle].bias.grad.any()
    assert parts[1 - idle].weight.grad.any()
    nn.init.normal_(parts[idle].weight)
    assert torch.equal(block(features, guide_map), before)


def test_attention_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    block = CrossTaskGuidedAttention(3, 4, 3)
    features, p = uniform(2, 4, 3, 4, 5), uniform(2, 1, 3, 4, 5, seed=5)
    joined = 0
    for k, part in zip((1 - p, p), block.segmentation.parts, strict=True):
        sums = (k * features).sum((2, 3, 4), keepdim=True)
        joined = joined + part(features * (sums / sums.abs().sum(1, keepdim=True))) * k
    torch.testing.assert_close(block(features, p), block.segmentation.final(joined))


def test_no_gradient_enters_the_guide() -> None:
    guide, features = uniform(1, 1, 4, 4, 4).requires_grad_(), uniform(1, 4, 4, 4, 4).requires_grad_()
    CrossTaskGuidedAttention(3, 4, 3)(features, guide).sum().backward()
    assert guide.grad is None
    assert features.grad.any()


@pytest.mark.parametrize(("attention", "expected"), [("cga", 2 * 3 * 2), ("se", 0), ("none", 0)], ids=ATTENTIONS)
def test_weights_of_attention_are_those_of_three_convolutions_in_each_guided_head(
    attention: str, expected: int
) -> None:
    network = meta_network(attention=attention)
    found = [parameter for _, parameter in filter(in_attention, network.named_parameters())]
    guided = [head for head in network.heads if isinstance(head, CrossTaskGuidedAttention)]
    assert len(found) == expected
    assert {id(p) for p in found} == {id(p) for head in guided for p in head.parameters()}


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
@pytest.mark.parametrize("task", range(3), ids=["coarse", "refined", "precise"])
def test_a_task_trains_its_own_head_and_the_backbone_alone(attention: str, task: int) -> None:
    network = small_network(attention)
    network(normal(2, 4, 16, 16, 8))[task].square().mean().backward()
    for other, head in enumerate(network.heads):
        gradients = [p.grad for p in head.parameters()]
        assert all(g is not None for g in gradients) if other == task else all(g is None for g in gradients)
    assert all(p.grad is not None for p in network.backbone.parameters())
    assert network.backbone.encoders[0][0].conv.weight.grad.any()


@pytest.mark.parametrize("task", [0, 1], ids=["coarse", "refined"])
@torch.no_grad()
def test_a_task_guides_the_next_one_under_cga_alone(task: int) -> None:
    for attention in ATTENTIONS:
        network = small_network(attention, dropout=0.0)
        x = normal(2, 4, 16, 16, 8)
        set_constant(network.heads[task], [0.7, 0.1, 0.1, 0.1])
        before = network(x)[task + 1]
        set_constant(network.heads[task], [0.1, 0.3, 0.3, 0.3])
        assert torch.equal(network(x)[task + 1], before) == (attention != "cga")


@torch.no_grad()
def test_the_guides_are_the_regions_of_the_tasks_before() -> None:
    network = small_network().eval()
    guides: list[torch.Tensor] = []
    for head in network.heads[1:]:
        head.register_forward_hook(lambda module, args, output: guides.append(args[1]))
    regions = network(normal(1, 4, 16, 16, 8))
    assert torch.equal(guides[0], regions[:, :1])
    assert torch.equal(guides[1], regions[:, 1:2])


@pytest.mark.parametrize("num_tasks", [1, 2, 3], ids=str)
def test_training_returns_the_logits_of_the_active_tasks(num_tasks: int) -> None:
    logits = small_network(class_counts=(5, 5, 2))(normal(2, 4, 16, 16, 8), num_tasks)
    assert [tuple(scores.shape) for scores in logits] == [(2, c, 16, 16, 8) for c in (5, 5, 2)[:num_tasks]]


def train(network: OMNet, optimizer: torch.optim.Optimizer, num_tasks: int, steps: int = 3) -> None:
    network.train()
    for step in range(steps):
        label = (uniform(3, 1, 16, 16, 8, seed=step) * 4).byte()
        optimizer.zero_grad()
        logits = network(normal(3, 4, 16, 16, 8, seed=step), num_tasks)
        OMNetLoss()(logits, {"label": label, "task": torch.arange(3) % num_tasks}).backward()
        optimizer.step()


def frozen_copy(heads: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Parameters, buffers and the optimizer's memory of some heads."""
    memory = [value for p in heads.parameters() for value in optimizer.state.get(p, {}).values()]
    return [value.clone() for value in [*heads.state_dict().values(), *memory]]


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS, ids=str)
def test_heads_that_have_not_joined_stay_bit_identical(attention: str, optimizer_name: str) -> None:
    network = small_network(attention)
    optimizer = OPTIMIZERS[optimizer_name](network.parameters())
    before = copy.deepcopy(network.state_dict())
    train(network, optimizer, num_tasks=1)
    same = {name: torch.equal(value, before[name]) for name, value in network.state_dict().items()}
    assert all(same[name] for name in same if name.startswith(("heads.1.", "heads.2.")))
    assert not any(same[name] for name in same if name.startswith(("backbone.", "heads.0.")))
    assert all(p not in optimizer.state for p in network.heads[1:].parameters())


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS, ids=str)
def test_heads_that_have_left_keep_parameters_buffers_and_momentum(attention: str, optimizer_name: str) -> None:
    network = small_network(attention)
    optimizer = OPTIMIZERS[optimizer_name](network.parameters())
    train(network, optimizer, num_tasks=3)
    left, active = frozen_copy(network.heads[1:], optimizer), frozen_copy(network.heads[:1], optimizer)
    train(network, optimizer, num_tasks=1)
    assert len(left) > len(network.heads[1:].state_dict())  # the optimizer remembers something
    assert all(map(torch.equal, frozen_copy(network.heads[1:], optimizer), left))
    assert not any(map(torch.equal, frozen_copy(network.heads[:1], optimizer), active))


@torch.no_grad()
def test_regions_by_hand_with_an_idle_fifth_class_and_without_nesting() -> None:
    # WT = 0.1 + 0.1 + 0.1 without the 0.5 of class 4, TC = 0.4 + 0.3 above it, ET as it is.
    network = small_network(class_counts=(5, 5, 2)).eval()
    for head, shares in zip(
        network.heads, ([0.2, 0.1, 0.1, 0.1, 0.5], [0.1, 0.4, 0.1, 0.3, 0.1], [0.6, 0.4]), strict=True
    ):
        set_constant(head, shares)
    regions = network(normal(2, 4, 16, 16, 8))
    expected = torch.tensor([0.3, 0.7, 0.4]).reshape(1, 3, 1, 1, 1).expand(2, 3, 16, 16, 8)
    torch.testing.assert_close(regions, expected)


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
@pytest.mark.parametrize("class_counts", [(4, 4, 2), (5, 5, 2)], ids=["4 classes", "5 classes"])
@torch.no_grad()
def test_regions_are_sums_of_the_heads_probabilities(attention: str, class_counts: tuple[int, ...]) -> None:
    network = small_network(attention, class_counts=class_counts).eval()
    logits: list[torch.Tensor] = []
    for head in network.heads:
        head.register_forward_hook(lambda module, args, output: logits.append(output))
    whole, core, enhancing = network(normal(1, 4, 16, 16, 8)).unbind(1)
    coarse, refined, precise = (scores.softmax(1) for scores in logits)
    torch.testing.assert_close(whole, coarse[:, 1] + coarse[:, 2] + coarse[:, 3])
    torch.testing.assert_close(core, refined[:, 1] + refined[:, 3])
    torch.testing.assert_close(enhancing, precise[:, 1])


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (["coarse"], (0.6, 0.4, 0.3)),
        (["refined"], (0.9, 0.5, 0.1)),
        (["precise"], (0.7, 0.7, 0.7)),
        (["coarse", "refined"], (0.6, 0.5, 0.1)),
        (["coarse", "precise"], (0.6, 0.4, 0.7)),
        (["refined", "precise"], (0.9, 0.5, 0.7)),
        (["coarse", "refined", "precise"], (0.6, 0.5, 0.7)),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
@torch.no_grad()
def test_a_region_without_its_own_task_comes_from_the_classes_of_the_task_before(
    tasks: list[str], expected: tuple[float, ...]
) -> None:
    # Shares of background, necrosis, edema, enhancing; of the rest and enhancing.
    shares = {"coarse": [0.4, 0.1, 0.2, 0.3], "refined": [0.1, 0.4, 0.4, 0.1], "precise": [0.3, 0.7]}
    for attention in ATTENTIONS:
        network = small_network(attention, tasks=tasks).eval()
        for head, task in zip(network.heads, tasks, strict=True):
            set_constant(head, shares[task])
        regions = network(normal(1, 4, 8, 8, 8))
        torch.testing.assert_close(regions[0, :, 0, 0, 0], torch.tensor(expected))
        assert len(network.train()(normal(2, 4, 8, 8, 8))) == len(tasks)


@torch.no_grad()
def test_a_guided_task_is_guided_by_the_region_it_samples_in() -> None:
    network = small_network(tasks=["coarse", "precise"]).eval()
    guides: list[torch.Tensor] = []
    network.heads[1].register_forward_hook(lambda module, args, output: guides.append(args[1]))
    regions = network(normal(1, 4, 16, 16, 8))
    assert torch.equal(guides[0], regions[:, 1:2])  # the core


@pytest.mark.parametrize("tasks", [[], ["fine"], ["refined", "coarse"], ["coarse", "coarse"], "coarse"], ids=str)
def test_unknown_tasks_and_one_that_is_no_list_are_refused_with_what_came(tasks: list[str] | str) -> None:
    with pytest.raises(ValueError, match=r"tasks must be a list of some of coarse, refined, precise in this") as raised:
        meta_network(tasks=tasks)
    assert str(raised.value).endswith(f"as [coarse,refined], got {tasks!r}")


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
@pytest.mark.parametrize(
    "spatial",
    [(16, 16, 16), (8, 8, 8), (17, 18, 9), (5, 8, 31), (1, 1, 1), (17, 9), (1, 16)],
    ids=lambda spatial: "x".join(map(str, spatial)),
)
@torch.no_grad()
def test_any_size_gives_float32_probabilities_of_the_same_size(attention: str, spatial: tuple[int, ...]) -> None:
    network, x = small_network(attention, spatial_dims=len(spatial)), normal(2, 4, *spatial)
    assert [scores.shape[2:] for scores in network(x)] == [spatial] * 3
    regions = network.eval()(x)
    assert regions.dtype == torch.float32
    assert regions.shape == (2, 3, *spatial)
    assert regions.min() >= 0
    assert regions.max() <= 1


@torch.no_grad()
def test_probabilities_of_a_certain_network_do_not_exceed_one() -> None:
    # In float32 the shares of the tumor classes at hand may add up to 1.0000001.
    network = small_network(class_counts=(5, 5, 2)).eval()
    nn.init.normal_(network.heads[0].final.conv.weight, std=3.0)
    nn.init.normal_(network.heads[1].segmentation.final.weight, std=30.0)
    regions = network(normal(1, 4, 32, 32, 16) * 10)
    assert (regions[:, 0] > 1 - 1e-6).any()
    assert regions.max() <= 1


@torch.no_grad()
def test_a_side_that_is_no_multiple_of_eight_is_padded_at_its_far_end() -> None:
    backbone = FusionNet(features=(4, 6, 8, 10)).eval()
    x = normal(1, 4, 17, 18, 9)
    padded = F.pad(x, (0, 7, 0, 6, 0, 7))
    assert torch.equal(backbone(x), backbone(padded)[..., :17, :18, :9])


@pytest.mark.parametrize("tasks", [["coarse"], ["coarse", "refined"], ["precise"], None], ids=str)
@torch.no_grad()
def test_output_is_fresh_memory(tasks: list[str] | None) -> None:
    network, x = small_network(tasks=tasks).eval(), normal(1, 4, 16, 16, 8)
    kept = x.clone()
    first = network(x)
    before = first.clone()
    network(x).zero_()
    assert torch.equal(first, before)
    first.zero_()
    assert torch.equal(x, kept)
    assert first.shape[1] == 3


@torch.no_grad()
def test_evaluation_runs_all_tasks_and_leaves_the_network_alone() -> None:
    network = small_network().eval()
    before = copy.deepcopy(network.state_dict())
    x = normal(1, 4, 16, 16, 8)
    assert torch.equal(network(x, 1), network(x))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("scale", [0, 1, 10, 100], ids=lambda scale: f"{scale} standard deviations")
def test_autocast_stays_finite(attention: str, dtype: torch.dtype, scale: int) -> None:
    network = small_network(attention)
    x = normal(2, 4, 16, 8, 8) * scale  # small: backward in float16 is slow on a CPU
    with torch.autocast("cpu", dtype):
        logits = network(x)
        regions = network.eval()(x)
    sum(scores.float().mean() for scores in logits).backward()
    assert all(scores.isfinite().all() for scores in logits)
    assert all(p.grad.isfinite().all() for p in network.parameters())
    assert regions.dtype == torch.float32
    assert regions.isfinite().all()


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("scale", [1, 10, 100], ids=lambda scale: f"{scale} standard deviations")
@torch.no_grad()
def test_weights_in_half_precision_stay_finite(attention: str, dtype: torch.dtype, scale: int) -> None:
    network = small_network(attention, features=(8, 16, 32, 64)).to(dtype)
    x = (normal(2, 4, 16, 16, 16) * scale).to(dtype)
    logits = network(x)
    assert all(scores.dtype == dtype and scores.isfinite().all() for scores in logits)
    regions = network.eval()(x)
    assert regions.dtype == torch.float32
    assert regions.isfinite().all()


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
@torch.no_grad()
def test_half_precision_is_close_to_single(dtype: torch.dtype) -> None:
    network, x = small_network().eval(), normal(1, 4, 16, 16, 16)
    single = network(x)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(network(x), single, atol=0.05, rtol=0)
    torch.testing.assert_close(network.to(dtype)(x.to(dtype)), single, atol=0.05, rtol=0)


@torch.no_grad()
def test_full_size_network_stays_finite_in_float16_on_the_training_patch() -> None:
    torch.manual_seed(0)
    network = OMNet().eval()
    with torch.autocast("cpu", torch.float16):
        regions = network(normal(1, 4, 32, 32, 16) * 100)
    assert regions.isfinite().all()


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
@pytest.mark.parametrize("spatial", [(17, 16, 9), (17, 16)], ids=["3-D", "2-D"])
@torch.no_grad()
def test_scripted_and_exported_networks_equal_the_eager_one(attention: str, spatial: tuple[int, ...]) -> None:
    network, x = small_network(attention, spatial_dims=len(spatial)).eval(), normal(2, 4, *spatial)
    expected = network(x)
    scripted = torch.jit.script(network)
    for _ in range(3):  # the later passes are the optimized ones
        torch.testing.assert_close(scripted(x), expected)
    torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), expected)


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
@torch.no_grad()
def test_a_scripted_network_in_training_returns_the_active_logits(attention: str) -> None:
    network, x = small_network(attention, dropout=0.0), normal(2, 4, 16, 16, 8)
    scripted = torch.jit.script(copy.deepcopy(network))
    for num_tasks in (1, 2, 3):
        logits = scripted(x, num_tasks)
        assert isinstance(logits, list)
        torch.testing.assert_close(logits, network(x, num_tasks))
    assert scripted.eval()(x).shape == (2, 3, 16, 16, 8)


@torch.no_grad()
def test_a_deep_copy_is_equal_and_independent() -> None:
    network, x = small_network().eval(), normal(1, 4, 16, 16, 8)
    expected = network(x)
    twin = copy.deepcopy(network)
    assert torch.equal(twin(x), expected)
    twin.reset_parameters()
    assert not torch.equal(twin(x), expected)
    assert torch.equal(network(x), expected)


@pytest.mark.parametrize("other", ["none", "se"], ids=str)
def test_weights_of_another_variant_are_refused_even_when_asked_to_take_what_fits(other: str) -> None:
    network, others = small_network(), small_network(other)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "heads\.1\.segmentation\.'):
        network.load_state_dict(others.state_dict(), strict=False)


def test_dropout_acts_in_training_alone_and_can_be_switched_off() -> None:
    x = normal(2, 4, 16, 16, 16)
    dropped, kept = small_network(dropout=0.5), small_network(dropout=0.0)
    assert inspect.signature(OMNet).parameters["dropout"].default == 0.5
    assert not torch.equal(dropped(x, 1)[0], dropped(x, 1)[0])
    assert torch.equal(kept(x, 1)[0], kept(x, 1)[0])
    kept.load_state_dict(dropped.state_dict())
    assert torch.equal(dropped.eval()(x), kept.eval()(x))


def test_sequences_levels_and_norm_are_arguments() -> None:
    network = small_network(in_channels=2, features=(4, 8), norm="instance").eval()
    assert network(normal(1, 2, 6, 6, 6)).shape == (1, 3, 6, 6, 6)
    assert kinds(network)["BatchNorm3d"] == 0
    # As a list, which is how JSON writes it.
    network = small_network(norm=["batch", {"momentum": 0.25}])
    assert {norm.momentum for norm in network.modules() if isinstance(norm, nn.BatchNorm3d)} == {0.25}


@pytest.mark.parametrize("attention", ["cbam", "CGA", ""], ids=["unknown", "upper case", "empty"])
def test_an_unknown_attention_is_refused(attention: str) -> None:
    with pytest.raises(ValueError, match=f'attention must be "cga", "se" or "none", got {attention!r}'):
        meta_network(attention=attention)


@pytest.mark.parametrize("class_counts", [(), (5,), (5, 5, 2, 2), (3, 5, 2), (5, 3, 2), (5, 5, 1)], ids=str)
def test_class_counts_that_cannot_hold_the_classes_are_refused(class_counts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"three counts of at least \[4, 4, 2\], got \("):
        meta_network(class_counts=class_counts)
