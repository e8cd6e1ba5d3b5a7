"""The inferer around MONAI's: what reaches the network, and what comes back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer, SlidingWindowInfererAdapt
from torch import nn
from torch.nn.functional import interpolate

from omnet_monai import inferers
from omnet_monai.inferers import AutocastInferer, MirroringInferer, default_device, has_bfloat16, windows_at_once
from omnet_monai.networks import OMNet

WINDOW = (16, 16, 8)


class Probe(nn.Module):
    """Stands for a network: keeps what it was called with and returns three fresh channels."""

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        layout = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
        self.channels_last = x.is_contiguous(memory_format=layout)
        self.autocast = torch.is_autocast_enabled(x.device.type) and torch.get_autocast_dtype(x.device.type)
        self.args, self.kwargs, self.shape = args, kwargs, tuple(x.shape)
        return x[:, :3] * 2


def small_network() -> OMNet:
    torch.manual_seed(0)
    return OMNet(class_counts=(4, 4, 2), features=(4, 6, 8, 10)).eval()


def image(*spatial: int) -> torch.Tensor:
    return torch.randn((1, 4, *spatial), generator=torch.Generator().manual_seed(1))


def in_channels_last(network: nn.Module):
    return lambda x: network(x.contiguous(memory_format=torch.channels_last_3d))


@pytest.mark.parametrize("spatial", [(16, 12, 8), (16, 12)], ids=["3-D", "2-D"])
def test_the_network_sees_channels_last_input(spatial: tuple[int, ...]) -> None:
    probe, x = Probe(), image(*spatial)
    out = AutocastInferer(SimpleInferer())(x, probe)
    assert probe.channels_last
    assert torch.equal(out, x[:, :3] * 2)


def test_each_window_reaches_the_network_in_channels_last() -> None:
    probe = Probe()
    AutocastInferer(SlidingWindowInferer(WINDOW, sw_batch_size=2))(image(16, 20, 8), probe)
    assert probe.channels_last
    assert probe.shape == (2, 4, *WINDOW)


def test_further_arguments_reach_the_network() -> None:
    probe = Probe()
    AutocastInferer(SimpleInferer())(image(8, 8, 8), probe, "extra", num_tasks=2)
    assert probe.args == ("extra",)
    assert probe.kwargs == {"num_tasks": 2}


@pytest.mark.parametrize("num_tasks", [1, 2, 3], ids=str)
def test_the_number_of_tasks_reaches_a_network_in_training(num_tasks: int) -> None:
    logits = AutocastInferer(SimpleInferer(), amp=False)(image(*WINDOW), small_network().train(), num_tasks=num_tasks)
    assert [scores.shape[1] for scores in logits] == [4, 4, 2][:num_tasks]


@pytest.mark.parametrize(
    "inferer",
    [
        SimpleInferer(),
        SlidingWindowInferer(WINDOW, 2, overlap=0.25),
        SlidingWindowInfererAdapt(WINDOW, mode="gaussian"),
    ],
    ids=["simple", "sliding window", "adaptive sliding window"],
)
@torch.no_grad()
def test_without_amp_the_result_is_that_of_the_wrapped_inferer(inferer) -> None:
    network, x = small_network(), image(17, 16, 12)
    expected = inferer(x, in_channels_last(network))
    assert torch.equal(AutocastInferer(inferer, amp=False, fold=False)(x, network), expected)
    torch.testing.assert_close(AutocastInferer(inferer, amp=False)(x, network), expected)


class Counter(nn.Module):
    """Stands for a network that finds tumor everywhere, and counts the windows that it ran on."""

    windows = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.windows += len(x)
        return torch.ones_like(x[:, :3])


@pytest.mark.parametrize("sw_batch_size", [1, 3, 8], ids=lambda size: f"batches of {size}")
def test_what_is_outside_the_brain_is_background_and_a_window_of_it_does_not_run(sw_batch_size: int) -> None:
    x, counter = torch.zeros(1, 4, 32, 16, 16), Counter()  # 2 x 1 x 2 windows without overlap
    x[0, 2, 5, 5, 5] = -1  # the first has brain in one sequence,
    x[0, 0, 20, 3, 15] = 1  # the last in another
    with torch.no_grad():
        out = AutocastInferer(SlidingWindowInferer(WINDOW, sw_batch_size, overlap=0))(x, counter)
    assert counter.windows == 2
    assert out.nonzero().tolist() == [[0, region, *voxel] for region in range(3) for voxel in ([5, 5, 5], [20, 3, 15])]


def test_a_volume_without_brain_is_background() -> None:
    with torch.no_grad():
        out = AutocastInferer(SlidingWindowInferer(WINDOW, 2))(torch.zeros(1, 4, 24, 16, 16), Counter())
    assert torch.equal(out, torch.zeros(1, 3, 24, 16, 16))


def test_every_window_runs_where_none_shall_be_left_out() -> None:
    counter = Counter()
    with torch.no_grad():
        AutocastInferer(SlidingWindowInferer(WINDOW, 3, overlap=0), skip_empty=False)(
            torch.zeros(1, 4, 32, 16, 16), counter
        )
    assert counter.windows == 4


class Recorder(nn.Module):
    """Stands for a network that takes the first sequence for the probability of tumor, or always answers the same."""

    def __init__(self, searches: int, answer: float | None = None) -> None:
        super().__init__()
        self.windows, self.searches, self.answer = 0, searches, answer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        searching = self.windows < self.searches
        self.windows += len(x)
        probs = x[:, :1].expand(-1, 3, *x.shape[2:])
        return probs.clone() if searching or self.answer is None else torch.full_like(probs, self.answer)


def brain_with_tumor(*spatial: int) -> torch.Tensor:
    """Brain of 0.01 in which voxels 4 to 11 are tumor, on the last axis 2 to 5."""
    x = torch.full((1, 4, *spatial), 0.01)
    x[(..., *[slice(4, 12)] * (len(spatial) - 1), slice(2, 6))] = 1
    return x


SEARCH = {"amp": False, "search": 2.0}


@torch.no_grad()
def test_after_a_search_only_windows_with_tumor_run_in_full() -> None:
    x, network = brain_with_tumor(64, 32, 16), Recorder(searches=2)
    x[..., 5, 5, 3] = 0.5  # which the search does not see by itself
    out = AutocastInferer(SlidingWindowInferer(WINDOW, 2, overlap=0), **SEARCH)(x, network)
    assert network.windows == 2 + 1  # of 32x16x8 wider voxels, and of 16 windows in full the first
    torch.testing.assert_close(out, x[:, :3])


@pytest.mark.parametrize("sw_batch_size", [1, 3], ids=lambda size: f"batches of {size}")
@torch.no_grad()
def test_windows_that_run_are_blended_with_what_the_search_found_where_they_overlap_others(sw_batch_size: int) -> None:
    x, network = torch.full((1, 4, 64, 32, 16), 0.01), Recorder(searches=3, answer=0.7)
    x[..., 6:10, 6:10, 2:4] = 1  # found by wider voxels in 5 to 10 and 1 to 4: in the middle of the first window alone
    out = AutocastInferer(SlidingWindowInferer(WINDOW, sw_batch_size, overlap=0.5), **SEARCH)(x, network)
    assert network.windows == 3 + 1
    expected = interpolate(interpolate(x[:, :3], scale_factor=0.5, mode="area"), scale_factor=2, mode="trilinear")
    share = torch.ones(16, 16, 8)  # of the window that ran; in its second half along an axis another has as much
    for half in (share[8:], share[:, 8:], share[:, :, 4:]):
        half /= 2
    expected[..., :16, :16, :8] += share * (0.7 - expected[..., :16, :16, :8])
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("window", "first", "windows"),
    [(WINDOW, 14, 1), (WINDOW, 12, 2), ((16, 16, -1), 14, 1)],
    ids=["at one's border", "between two", "windows as deep as the image"],
)
@torch.no_grad()
def test_tumor_at_the_border_of_windows_runs_the_one_it_lies_deeper_in(window: Any, first: int, windows: int) -> None:
    x, network = torch.full((1, 4, 64, 32, 16), 0.01), Recorder(searches=3)
    # Windows begin at 0, 8, 16, and count for 4 to 11, 12 to 19, 20 to 27; wider voxels find a voxel more on each side.
    x[..., first : first + 4, 6:10, slice(2, 4) if window == WINDOW else slice(2)] = 1
    AutocastInferer(SlidingWindowInferer(window, 1, overlap=0.5), **SEARCH)(x, network)
    assert network.windows == 3 + windows


@torch.no_grad()
def test_a_search_that_finds_nothing_looks_at_the_rim_of_the_brain_too() -> None:
    x, network = torch.full((1, 4, 64, 32, 16), 0.01), Recorder(searches=3, answer=0.7)
    x[..., 34:, :, :] = 0  # so that of the brain a window from 32 holds two slices at its border alone
    out = AutocastInferer(SlidingWindowInferer(WINDOW, 2, overlap=0.5), **SEARCH)(x, network)
    assert network.windows == 3 + 5 * 3 * 3
    torch.testing.assert_close(out, 0.7 * (x[:, :3] > 0))


@torch.no_grad()
def test_windows_that_run_after_a_search_go_through_the_network_in_full_batches() -> None:
    x, batches = torch.full((1, 4, 64, 32, 16), 0.01), []
    x[..., :6] = 1  # in half of the 16 windows, every second one

    def network(windows: torch.Tensor) -> torch.Tensor:
        batches.append(len(windows))
        return windows[:, :3] * 2

    out = AutocastInferer(SlidingWindowInferer(WINDOW, 3, overlap=0), **SEARCH)(x, network)
    assert batches == [2, 3, 3, 2]  # of two windows in the search, of eight in full
    torch.testing.assert_close(out[..., :8], 2 * x[:, :3, ..., :8])


@torch.no_grad()
def test_a_search_works_in_two_dimensions_and_keeps_meta_data() -> None:
    x, affine = brain_with_tumor(64, 16), torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    inferer = AutocastInferer(SlidingWindowInferer((16, 8), 2, overlap=0), **SEARCH)
    out = inferer(MetaTensor(x, affine=affine), network := Recorder(searches=2))
    assert network.windows == 2 + 1
    torch.testing.assert_close(out.as_tensor(), x[:, :3])
    assert torch.equal(out.affine, affine)


@torch.no_grad()
def test_nothing_is_found_outside_the_brain() -> None:
    x = brain_with_tumor(64, 32, 16)
    x[..., 12:, :, :] = 0  # where the window that runs, and interpolation, still reach
    out = AutocastInferer(SlidingWindowInferer(WINDOW, 2, overlap=0), **SEARCH)(x, Recorder(searches=1, answer=0.7))
    assert out[..., :12, :16, :8].unique().tolist() == [pytest.approx(0.7)]  # of the window that ran
    assert out[..., :12, :, :].all()
    assert not out[..., 12:, :, :].any()


@torch.no_grad()
def test_a_wider_voxel_is_the_mean_of_those_that_it_holds() -> None:
    x, network = torch.full((1, 4, 64, 32, 16), 0.01), Recorder(searches=0)
    x[:, :, 4:12, 4:12, 3:7:2] = 0.31  # every second voxel: in the mean 0.16, above the threshold of 0.125
    AutocastInferer(SlidingWindowInferer(WINDOW, 2, overlap=0), **SEARCH)(x, network)
    assert network.windows == 2 + 1


@torch.no_grad()
def test_a_window_without_brain_does_not_run_beside_tumor_either() -> None:
    x, network = torch.full((1, 4, 64, 32, 16), 0.01), Recorder(searches=1)
    x[:, :, 8:16, 4:12, 2:6] = 1  # up to the end of a window, and interpolation finds it beyond
    x[:, :, 16:] = 0
    AutocastInferer(SlidingWindowInferer(WINDOW, 2, overlap=0), **SEARCH)(x, network)
    assert network.windows == 1 + 1


@torch.no_grad()
def test_a_search_may_have_windows_of_another_size() -> None:
    x, sliding = brain_with_tumor(64, 32, 16), SlidingWindowInferer((16, 16, -1), 1, overlap=0)
    out = AutocastInferer(sliding, **SEARCH)(x, Recorder(searches=2))  # of 16x16x8 in the search, then of 16x16x16
    torch.testing.assert_close(out, x[:, :3])


@pytest.mark.parametrize(
    ("spatial", "value", "windows"),
    [((64, 32, 16), 0.01, 2 + 16), ((64, 30, 16), 1.0, 16)],
    ids=["nothing found", "wider voxels do not fill a window"],
)
@torch.no_grad()
def test_every_window_runs_where_a_search_does_not_help(spatial: tuple[int, ...], value: float, windows: int) -> None:
    x, counter = torch.full((1, 4, *spatial), value), Recorder(searches=0)
    out = AutocastInferer(SlidingWindowInferer(WINDOW, 2, overlap=0), **SEARCH)(x, counter)
    torch.testing.assert_close(out, x[:, :3])
    assert counter.windows == windows


@torch.no_grad()
def test_each_image_of_a_batch_is_searched_by_itself() -> None:
    x, counter = brain_with_tumor(64, 32, 16), Recorder(searches=0)
    x = torch.cat([x, torch.full_like(x, 0.01)])
    x[1, :, 48:] = 0  # a quarter of the second
    out = AutocastInferer(SlidingWindowInferer(WINDOW, 3, overlap=0), **SEARCH)(x, counter)
    torch.testing.assert_close(out, x[:, :3])
    assert counter.windows == 2 * 2 + 1 + 12  # nothing is found in the second, so all windows with brain run


@pytest.mark.parametrize(("threshold", "windows"), [(0.05, 1), (0.2, 16)], ids=["below", "above"])
@torch.no_grad()
def test_the_threshold_of_the_search_is_of_the_tumors_probability(threshold: float, windows: int) -> None:
    x, counter = brain_with_tumor(64, 32, 16) / 10, Recorder(searches=0)  # tumor is 0.1
    AutocastInferer(SlidingWindowInferer(WINDOW, 2, overlap=0), search_threshold=threshold, **SEARCH)(x, counter)
    assert counter.windows == 2 + windows


@pytest.mark.parametrize(("peak", "windows"), [(0.0, 2), (0.2, 2), (0.3, 1)], ids=["any", "below", "above"])
@torch.no_grad()
def test_a_cluster_that_the_search_is_unsure_of_does_not_count(peak: float, windows: int) -> None:
    x = brain_with_tumor(64, 32, 16)
    x[:, :, 48:64, :16, :8] = 0.25  # as unsure as that in a window of its own, whole
    settings = {"search_threshold": 0.125, "search_peak": peak, **SEARCH}
    network = Recorder(searches=2, answer=0.7)
    out = AutocastInferer(SlidingWindowInferer(WINDOW, 2, overlap=0), **settings)(x, network)
    assert network.windows == 2 + windows
    assert out[0, 0, 56, 8, 4].item() == pytest.approx(0.7 if windows == 2 else 0.25)


@torch.no_grad()
def test_a_search_that_finds_nothing_but_unsure_clusters_looks_everywhere() -> None:
    x, network = brain_with_tumor(64, 32, 16) / 5, Recorder(searches=2)  # tumor is 0.2
    AutocastInferer(SlidingWindowInferer(WINDOW, 2, overlap=0), search_peak=0.3, **SEARCH)(x, network)
    assert network.windows == 2 + 16


@torch.no_grad()
def test_a_search_that_finds_tumor_everywhere_changes_nothing() -> None:
    # Half of the image is empty; these windows count where they overlap those that ran.
    network, x = small_network(), image(48, 40, 20)
    x[:, :, 26:] = 0
    sliding = SlidingWindowInferer(WINDOW, 2, overlap=0.5, mode="gaussian")
    every = AutocastInferer(sliding, amp=False)(x, network)
    found = AutocastInferer(sliding, search_threshold=0.0, **SEARCH)(x, network)
    assert every[:, 0, :26].min() > 0
    torch.testing.assert_close(found, every)


@pytest.mark.parametrize("lost", range(4))
@torch.no_grad()
def test_every_window_of_a_case_that_lacks_a_sequence_runs(lost: int) -> None:
    x, counter = brain_with_tumor(64, 32, 16), Recorder(searches=0)
    x[:, lost] = 0
    AutocastInferer(SlidingWindowInferer(WINDOW, 2, overlap=0), **SEARCH)(x, counter)
    assert counter.windows == 16


@pytest.mark.parametrize("switch", [{"search": 0.0}, {"skip_empty": False}], ids=["by itself", "with empty windows"])
@torch.no_grad()
def test_the_search_can_be_switched_off(switch: dict[str, float]) -> None:
    x, counter = brain_with_tumor(64, 32, 16), Recorder(searches=0)
    AutocastInferer(SlidingWindowInferer(WINDOW, 2, overlap=0), **SEARCH | switch)(x, counter)
    assert counter.windows == 16


def test_training_does_not_search() -> None:
    counter = Recorder(searches=0)
    AutocastInferer(SlidingWindowInferer(WINDOW, 2, overlap=0), **SEARCH)(brain_with_tumor(64, 32, 16), counter)
    assert counter.windows == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"search": 1.0}, r"search must be 0 or above 1, got 1\.0"),
        ({"search": -2.0}, r"search must be 0 or above 1, got -2\.0"),
        (
            {"search": 2.0, "inferer": SimpleInferer()},
            r"needs a SlidingWindowInferer, got SimpleInferer: set search to 0",
        ),
        ({"search_threshold": 1.0}, r"search_threshold must be in \[0, 1\), got 1\.0"),
        ({"search_peak": -0.1}, r"search_peak must be in \[0, 1\), got -0\.1"),
    ],
    ids=["no wider", "negative", "no windows", "threshold", "peak"],
)
def test_a_search_that_cannot_be_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutocastInferer(**{"inferer": SlidingWindowInferer(WINDOW)} | arguments)


def test_training_takes_every_patch_and_keeps_its_normalization() -> None:
    network, x = small_network().train(), torch.zeros(2, 4, *WINDOW)
    logits = AutocastInferer(SimpleInferer(), amp=False)(x, network)
    assert len(logits[0]) == 2
    assert network.backbone.encoders[0][0].adn.N.num_batches_tracked == 1


@pytest.mark.skipif(not has_bfloat16("cpu"), reason="this CPU does not compute in bfloat16")
@torch.no_grad()
def test_with_amp_the_result_is_close() -> None:
    network, x = small_network(), image(16, 16, 16)
    plain = AutocastInferer(SimpleInferer(), amp=False)(x, network)
    mixed = AutocastInferer(SimpleInferer())(x, network)
    assert not torch.equal(mixed, plain)
    torch.testing.assert_close(mixed, plain, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("amp", "native", "depth", "expected"),
    [(True, True, 17, torch.bfloat16), (True, False, 17, False), (False, True, 17, False), (True, True, 16, False)],
    ids=["native", "not native", "switched off", "wrong gradients"],
)
def test_autocast_opens_where_it_is_native_and_wanted(monkeypatch, amp, native, depth: int, expected) -> None:
    monkeypatch.setattr(inferers, "has_bfloat16", lambda device_type: native)
    probe = Probe()
    AutocastInferer(SimpleInferer(), amp)(image(depth, 8, 8), probe)
    assert probe.autocast == expected
    with torch.no_grad():
        AutocastInferer(SimpleInferer(), amp)(image(depth, 8, 8), probe)
    assert probe.autocast == (amp and native and torch.bfloat16)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("levels", [3, 4, 5], ids=lambda levels: f"{levels} levels")
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped"])
def test_training_is_in_float32_up_to_the_side_that_the_network_halves_to_two(
    monkeypatch, levels: int, wrapped: bool
) -> None:
    monkeypatch.setattr(inferers, "has_bfloat16", lambda device_type: True)
    network = OMNet(features=(2,) * levels)
    seen: list[bool] = []
    network.forward = lambda x: seen.append(torch.is_autocast_enabled("cpu"))
    for depth in (2**levels, 2**levels + 1):
        AutocastInferer(SimpleInferer())(image(depth, 8, 8), nn.Sequential(network) if wrapped else network)
    assert seen == [False, True]


@pytest.mark.parametrize("switch", ["amp", "fold", "skip_empty"])
def test_a_text_is_no_truth_value(switch: str) -> None:
    with pytest.raises(ValueError, match=rf"{switch} must be True or False.*got 'false'"):
        AutocastInferer(SimpleInferer(), **{switch: "false"})


@pytest.mark.parametrize("native", [True, False], ids=["bfloat16", "float32"])
@torch.no_grad()
def test_probabilities_come_back_in_float32(monkeypatch, native: bool) -> None:
    monkeypatch.setattr(inferers, "has_bfloat16", lambda device_type: native)
    out = AutocastInferer(SlidingWindowInferer(WINDOW, mode="gaussian"))(image(20, 16, 8), small_network())
    assert out.dtype == torch.float32
    assert out.shape == (1, 3, 20, 16, 8)
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-6  # the window's weights divide


@pytest.mark.parametrize("spatial", [(9, 10, 5), (9, 40, 5), (1, 1, 1)], ids=["all sides", "two sides", "one voxel"])
@torch.no_grad()
def test_an_image_smaller_than_a_window_is_segmented_whole(spatial: tuple[int, ...]) -> None:
    network, x = small_network(), image(*spatial)
    out = AutocastInferer(SlidingWindowInferer(WINDOW), amp=False)(x, network)
    assert out.shape == (1, 3, *spatial)
    assert out.isfinite().all()


@torch.no_grad()
def test_the_input_is_left_alone_and_not_shared() -> None:
    x = image(*WINDOW)
    before = x.clone()
    out = AutocastInferer(SimpleInferer(), amp=False)(x, small_network())
    out.zero_()
    assert torch.equal(x, before)


@torch.no_grad()
def test_an_image_with_meta_data_gives_the_same_probabilities() -> None:
    network, x = small_network(), image(20, 16, 8)
    inferer = AutocastInferer(SlidingWindowInferer(WINDOW), amp=False)
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    out = inferer(MetaTensor(x, affine=affine), network)
    assert torch.equal(out.as_tensor(), inferer(x, network))
    assert torch.equal(out.affine, affine)


@torch.no_grad()
def test_in_training_mode_without_gradients_dropout_alone_acts() -> None:
    network, x = small_network(), image(*WINDOW)
    inferer, expected = AutocastInferer(SlidingWindowInferer(WINDOW), amp=False), network(x)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    samples = [inferer(x, network.train()) for _ in range(2)]
    assert all(sample.shape == (1, 3, *WINDOW) for sample in samples)  # probabilities, where training gives logits
    assert not torch.equal(*samples)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.train().backbone.dropout.p = 0.0
    torch.testing.assert_close(inferer(x, network), expected)


@pytest.mark.parametrize(("available", "expected"), [(True, "cuda"), (False, "cpu")], ids=["a GPU", "no GPU"])
def test_the_default_device_is_the_gpu_if_there_is_one(monkeypatch, available: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert default_device() == torch.device(expected)


def test_a_device_of_another_kind_has_no_bfloat16() -> None:
    assert not has_bfloat16("mps")
    assert isinstance(has_bfloat16("cpu"), bool)


@pytest.mark.skipif(not has_bfloat16("cpu"), reason="this CPU does not compute in bfloat16")
@pytest.mark.parametrize("depth", [8, 16, 24], ids=lambda depth: f"depth {depth}")
def test_weight_gradients_of_any_patch_are_those_of_float32(depth: int) -> None:
    network, x = small_network(), image(depth, 16, 16).requires_grad_()
    gradients = []
    for amp in (False, True):
        network.zero_grad()
        AutocastInferer(SimpleInferer(), amp)(x, network).mean().backward()
        gradients.append([parameter.grad for name, parameter in network.named_parameters() if "backbone" in name])
    for exact, mixed in zip(*gradients, strict=True):  # rounding is far below a half, garbage far above
        assert (mixed - exact).norm() <= 0.5 * exact.norm() + 1e-6


@pytest.mark.parametrize(("axes", "passes"), [((), 1), ((1,), 2), ((0, 1, 2), 8)], ids=["none", "one", "three"])
def test_mirrored_passes_are_mirrored_back_and_averaged(axes: tuple[int, ...], passes: int) -> None:
    seen = []

    def first_plane(x: torch.Tensor) -> torch.Tensor:
        """Mark the first plane of each axis that is given, which mirroring makes the last."""
        seen.append(x)
        pred = torch.zeros_like(x[:, :3])
        for axis in range(3):
            pred.select(axis + 2, 0).add_(1)
        return pred

    pred = MirroringInferer(SimpleInferer(), axes)(image(4, 4, 4), first_plane)[0, 0]
    assert len({tuple(x.flatten().tolist()) for x in seen}) == passes
    # Of an axis that is mirrored both ends get half a mark, of another the first end gets it all.
    ends = [(pred.select(axis, 0)[1, 1].item(), pred.select(axis, 3)[1, 1].item()) for axis in range(3)]
    assert ends == [(0.5, 0.5) if axis in axes else (1.0, 0.0) for axis in range(3)]


def test_no_mirror_changes_nothing_and_a_symmetric_network_gives_the_same_from_all() -> None:
    x = MetaTensor(image(*WINDOW), meta={"case": "p1"})
    expected = SimpleInferer()(x, Probe())
    for axes in ((), (0, 2)):
        pred = MirroringInferer(SimpleInferer(), axes)(x, Probe())
        torch.testing.assert_close(pred.as_tensor(), expected.as_tensor())
        assert pred.meta["case"] == "p1"


def test_a_gpu_takes_more_windows_at_once_than_a_cpu() -> None:
    assert windows_at_once("cpu", (32, 32, 16)) == windows_at_once(torch.device("cpu"), (96, 96, 96)) == 4
    assert windows_at_once("cuda:1", (32, 32, 16)) == 64  # of 16,384 voxels each
    assert windows_at_once("cuda", (96, 96, 96)) == 4
