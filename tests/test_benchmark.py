"""The benchmark: what it counts, what it compares, and that its rows are the same segmentation by other ways."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer
from torch import nn

from omnet_monai import __version__, machine, timing
from omnet_monai.benchmark import _chosen, _stages, benchmark
from omnet_monai.demo import bundle_root, inference_config
from omnet_monai.files import sha256
from omnet_monai.finding import find_cases
from omnet_monai.inferers import AutocastInferer
from omnet_monai.machine import convolution_seconds, machine_rates
from omnet_monai.networks import OMNet
from omnet_monai.regions import SCHEMES
from omnet_monai.rivals import Rival, own_paths, rivals
from omnet_monai.timing import Volume


def test_a_convolution_costs_two_operations_per_weight_and_output_voxel() -> None:
    network = nn.Sequential(nn.Conv3d(4, 6, 3, padding=1), nn.ConvTranspose3d(6, 2, 2, stride=2), nn.Conv3d(2, 2, 1))
    first, up, last = convolution_seconds(network, torch.zeros(2, 4, 8, 8, 4))
    assert first["flops"] == 2 * (2 * 8 * 8 * 4) * (6 * 4 * 27)
    assert up["flops"] == 2 * (2 * 8 * 8 * 4) * (6 * 2 * 8)  # every voxel that comes in meets the whole kernel
    assert last["flops"] == 2 * (2 * 16 * 16 * 8) * (2 * 2)
    assert (up["in"], up["out"], up["input"]) == (6, 2, [2, 6, 8, 8, 4])
    assert all(layer["seconds"] > 0 for layer in (first, up, last))


def test_equal_convolutions_are_timed_once_and_counted() -> None:
    layer = nn.Conv3d(3, 3, 3, padding=1)
    (timed,) = convolution_seconds(
        nn.Sequential(layer, nn.ReLU(), nn.Conv3d(3, 3, 3, padding=1)), torch.zeros(1, 3, 4, 4, 4)
    )
    assert timed["times"] == 2


def test_rates_are_given_for_each_type_and_size() -> None:
    rates = machine_rates(sizes=(8, 16))
    assert {name: list(of) for name, of in rates["matmul"].items()} == {t: ["8", "16"] for t in ("float32", "bfloat16")}
    assert rates["copy"] > 0


@pytest.mark.parametrize(
    ("search", "last"),
    [
        (0, ["+ overlap 0.125", "+ batches of 8: the default"]),
        (2.5, ["+ batches of 8", "+ search by 2.5: the default"]),
    ],
    ids=["every window", "search"],
)
def test_the_last_of_our_rows_is_the_bundles_own_inferer(search: float, last: list[str]) -> None:
    default = AutocastInferer(SlidingWindowInferer((16, 16, 8), 8, 0.125, mode="gaussian"), search=search)
    rows = own_paths(OMNet(class_counts=(4, 4, 2), features=(2, 2, 4, 4)), default)
    assert [row.name for row in rows[-2:]] == last
    assert rows[-1].inferer is default
    assert rows[0].whole
    assert not any(row.whole for row in rows[1:])
    assert type(rows[0].inferer) is SlidingWindowInferer
    assert rows[0].inferer.overlap == 0.5
    assert len({row.name for row in rows}) == len(rows)


def test_rows_are_chosen_by_parts_of_their_names_which_a_semicolon_may_end() -> None:
    rows = [Rival(name, nn.Identity(), SimpleInferer()) for name in ("plain", "+ bfloat16", "+ folded: the default")]
    for only, places in {"": [0, 1, 2], "plain; the default": [0, 2], "plain;": [0], "mirrored": []}.items():
        assert _chosen(rows, only) == [rows[place] for place in places]


def test_rivals_are_of_the_published_sizes() -> None:
    network = OMNet(class_counts=(4, 4, 2), features=(2, 4, 4, 6))
    rows = {row.name: row for row in rivals(network, AutocastInferer(SlidingWindowInferer((16, 16, 8))))}
    sizes = {name: sum(p.numel() for p in row.network.parameters()) / 1e6 for name, row in rows.items()}
    assert round(sizes["SegResNet, published window, float32"], 2) == 4.70  # million
    assert not any(row.network.training for row in rows.values())


@torch.inference_mode()
def test_segresnet_runs_once_in_its_window_and_once_on_the_brain() -> None:
    network = OMNet(class_counts=(4, 4, 2), features=(2, 2, 2, 2))
    rows = {row.name: row for row in rivals(network, AutocastInferer(SlidingWindowInferer((16, 16, 8))))}
    seen: list[tuple[int, ...]] = []

    def three_regions(windows: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(windows.shape[2:]))
        return windows[:, :3]

    image = torch.rand(1, 4, 13, 17, 14) + 1
    for name in ("SegResNet, published window, bfloat16", "SegResNet, brain's box, bfloat16"):
        torch.testing.assert_close(rows[name].inferer(image, three_regions), image[:, :3])
    assert seen == [(240, 240, 160), (16, 24, 16)]  # the sides of the box to the next multiple of 8


def test_short_calls_are_timed_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr(machine.time, "perf_counter", lambda: 0.001 * len(calls))  # a call takes a millisecond
    assert machine.seconds(lambda: calls.append(None), repeats=2) == pytest.approx(0.001)
    assert len(calls) == 2 + 2 * 50  # one to warm up, one to see how long it takes, and two stretches of 50 ms


def test_the_kb_of_linux_have_1024_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    status = "Name:\tpython\nVmHWM:\t 2000000 kB\nVmRSS:\t 1000000 kB\n"
    monkeypatch.setattr(timing, "Path", lambda file: SimpleNamespace(read_text=lambda: status))
    assert timing.process_memory("VmRSS") == pytest.approx(1.024)
    assert timing.peak_memory(torch.device("cpu")) == pytest.approx(2.048)


@torch.inference_mode()
def test_the_cascades_find_tumor_where_our_coarse_task_does() -> None:
    network = OMNet(class_counts=(4, 4, 2), features=(2, 4, 4, 6)).eval()
    rows = {row.name: row for row in rivals(network, AutocastInferer(SlidingWindowInferer((16, 16, 8))))}
    x = torch.randn(2, 4, 16, 16, 8)
    coarse = rows["MC3, every window"].network.networks[0]
    torch.testing.assert_close(coarse(x)[:, 0], network(x)[:, 0])
    assert rows["MC3, windows found"].network.skip


@pytest.fixture(scope="module")
def measured(phantoms: Path, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmark")
    quick = {
        "repeats": 1,
        "limit": 1,
        "only": "plain;default;left out",
        "sizes": (16,),
        "bundle": str(small_bundle),
        "exact": True,
    }
    benchmark(
        str(phantoms), str(out), **quick, patch_size=[16, 16, 16], overlap=0.5, device="$torch.device('cpu')", amp=False
    )
    return out


def test_rows_differ_in_what_they_run_on_and_are_compared_to_the_first(measured: Path) -> None:
    plain, left_out, default = json.loads((measured / "benchmark.json").read_text())["rows"].values()
    (case,) = plain
    assert plain[case]["first"] == [1, 1, 1]
    assert left_out[case]["truth"] == pytest.approx(default[case]["truth"], abs=0.01)  # the same windows
    assert left_out[case]["windows"] == default[case]["windows"] < plain[case]["windows"]
    assert plain[case]["flops"] / plain[case]["windows"] == default[case]["flops"] / default[case]["windows"] > 0
    assert plain[case]["parameters"] == default[case]["parameters"] > 0
    if plain[case]["memory"]:
        peak, added = plain[case]["memory"]
        assert peak > 0.1
        assert 0 <= added < peak


def test_a_result_tells_what_it_is_of(measured: Path, small_bundle: Path) -> None:
    result = json.loads((measured / "benchmark.json").read_text())
    assert result["weights_sha256"] == sha256(small_bundle / "models" / "model.pt")
    assert result["version"] == __version__
    assert result["command"].startswith("python -m omnet_monai")


def test_stages_add_up_to_the_whole_case(measured: Path) -> None:
    (stages,) = json.loads((measured / "benchmark.json").read_text())["stages"].values()
    parts = ("load", "preprocess", "inference", "post-process", "save")
    assert sum(stages[part] for part in parts) == pytest.approx(stages["whole case"])
    assert stages["network"] + stages["blend"] == pytest.approx(stages["inference"])
    assert 0 < stages["network"] < stages["inference"]


@torch.inference_mode()
def test_what_nibabel_does_not_read_has_no_time_for_its_files_alone(phantoms: Path, tmp_path: Path) -> None:
    case = find_cases(phantoms)[0][0]
    volume = Volume(case, inference_config(bundle_root(), {"output_dir": str(tmp_path)}), torch.device("cpu"))
    load, volume.case = volume.before[0], {**case, "image": "images.mha"}
    volume.before[0] = lambda _: load(case)
    stages = volume.stages(SimpleInferer(), nn.Conv3d(4, 3, 1), repeats=2)
    assert stages["files alone"] is None
    json.dumps(stages, allow_nan=False)
    timed = {**stages, "whole case": 5.0, "inference": 2.0, "files alone": 1.5}
    (table,) = _stages({"p": stages})
    assert table.split()[-1] == "-"
    assert _stages({"p": stages, "q": timed})[1].startswith("everything but inference: 2.0 times")


@torch.inference_mode()
def test_post_processing_is_waited_for_before_the_file_is_saved(phantoms: Path, tmp_path: Path) -> None:
    parser = inference_config(bundle_root(), {"output_dir": str(tmp_path)})
    volume = Volume(find_cases(phantoms)[0][0], parser, torch.device("cpu"))
    order: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omnet_monai.timing._wait", lambda device: order.append("wait"))
        patch.setattr(volume, "_refine", lambda probs: order.append("refine"))
        patch.setattr(volume, "saver", lambda data: order.append("save"))
        volume.stages(SimpleInferer(), nn.Conv3d(4, 3, 1), repeats=1)
    assert order == ["wait", "refine", "wait", "save"]


def test_the_whole_volume_is_that_of_a_turned_and_thick_case_too(phantoms: Path, tmp_path: Path) -> None:
    # Slices of 3 mm along an axis that is not the third, as some scanners store them.
    files = [phantoms / "phantom_000" / f"phantom_000_{name}.nii.gz" for name in ("t1", "t1ce", "t2", "flair")]
    for file in files:
        image = nibabel.load(file)
        thick = nibabel.Nifti1Image(np.asarray(image.dataobj)[:, :, ::3], image.affine @ np.diag([1, 1, 3, 1]))
        nibabel.save(thick.as_reoriented(np.array([[2, -1], [0, 1], [1, 1]])), tmp_path / file.name)
    parser = inference_config(bundle_root(), {})
    volume = Volume({"case": "p", "image": [str(tmp_path / file.name) for file in files]}, parser, torch.device("cpu"))
    left, thick_slices, back = volume.native[2], volume.native[1], volume.native[0]
    assert volume.whole[:2] == [left, back]
    depth = 3 * thick_slices
    assert depth - 3 <= volume.whole[2] <= depth
    assert [box.stop - box.start for box in volume.box] == list(volume.image.shape[2:])
    shapes = []
    rival = SimpleNamespace(
        whole=True, network=None, inferer=lambda image, _: shapes.append(image.shape) or image[:, :3]
    )
    _, _, masks = volume.segment(rival)
    assert list(shapes[0][2:]) == volume.whole
    assert masks.shape[1:] == volume.native
    assert all(box.start >= 0 and box.stop <= side for box, side in zip(volume.box, volume.whole, strict=True))


def test_float32_is_close_to_float64(measured: Path) -> None:
    (compared,) = json.loads((measured / "benchmark.json").read_text())["exactness"].values()
    assert set(compared) == {"the default", "every window"}
    for exact in compared.values():  # the default searches no image that is as small as this one
        assert 0 < exact["largest"] < 1e-3
        assert min(exact["dice"]) > 0.999


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_regions_are_the_same_whatever_codes_are_written(phantoms: Path, scheme: str) -> None:
    volume = Volume(
        find_cases(phantoms)[0][0], inference_config(bundle_root(), {"label_scheme": scheme}), torch.device("cpu")
    )
    probs = torch.ones(1, 3, *volume.image.shape[2:])
    probs[:, 2, 8:] = 0  # enhancing in 8 planes, NCR/NET in the others
    _, _, masks = volume.segment(SimpleNamespace(whole=False, network=None, inferer=lambda image, _: probs))
    plane, box = probs[0, 0, 0].numel(), probs[0, 0].numel()
    assert masks.flatten(1).sum(1).tolist() == [box, box, 8 * plane]


@torch.inference_mode()
def test_float64_runs_on_the_same_windows(phantoms: Path, tmp_path: Path) -> None:
    # A window without brain counts as background, whatever the network would make of zeros: here one half.
    parser = inference_config(bundle_root(), {"output_dir": str(tmp_path)})
    volume = Volume(find_cases(phantoms)[0][0], parser, torch.device("cpu"))
    volume.image[:, :, :16, :16, :8] = 0
    network = OMNet(class_counts=(4, 4, 2), features=(2, 2, 2, 2)).eval()
    inferer = AutocastInferer(SlidingWindowInferer((16, 16, 8), 4, 0), amp=False)
    assert volume.exactness({"ours": inferer}, network)["ours"]["largest"] < 1e-5


def test_a_picture_is_drawn_where_there_are_labels(measured: Path) -> None:
    assert (measured / "benchmark.png").stat().st_size > 10_000


def test_an_unknown_row_is_refused(phantoms: Path, small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a benchmark needs cases and rows, got 4 cases.*'nothing of this name'"):
        benchmark(str(phantoms), str(tmp_path), only="nothing of this name", bundle=str(small_bundle))
    assert not list(tmp_path.iterdir())


def test_each_convolution_is_timed_in_both_types_under_autocast_too(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = []
    monkeypatch.setattr(machine, "seconds", lambda run, device: kinds.append(run().dtype) or 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        convolution_seconds(nn.Conv3d(4, 2, 3), torch.zeros(1, 4, 4, 4, 4))
    assert kinds == [torch.float32] * 2 + [torch.bfloat16] * 2


def test_rivals_are_where_the_network_is() -> None:
    network = OMNet(class_counts=(4, 4, 2), features=(2, 2, 4, 4)).to("meta")
    default = AutocastInferer(SlidingWindowInferer((16, 16, 8), 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omnet_monai.rivals._finding", lambda network, cascade: cascade)  # meta weights hold nothing
        rows = rivals(network, default)
    assert {parameter.device.type for row in rows for parameter in row.network.parameters()} == {"meta"}
