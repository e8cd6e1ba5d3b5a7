"""Exported networks: what is written, what runs from it, and what is refused."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import run
from torch import nn

from omnet_monai import __main__ as command_line
from omnet_monai.export import export
from omnet_monai.exported import ExportedNetwork
from omnet_monai.networks import OMNet
from omnet_monai.weights import ModelFile, load_weights

BUNDLE = Path(__file__).parents[1] / "bundle"
FEATURES = [4, 6, 8, 10]
WINDOW = (16, 32, 24)
FORMATS = ["ts", "pt2", "onnx"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network's weights, as training leaves them, and its three exports."""
    folder = tmp_path_factory.mktemp("exports")
    torch.manual_seed(0)
    network = OMNet(class_counts=(4, 4, 2), features=FEATURES)
    with torch.no_grad():
        for _ in range(5):  # normalization statistics that are not those of a fresh network
            network(2 * torch.randn(2, 4, 16, 16, 16) + 1)
    ModelFile(folder / "model.pt", network).save()
    load_weights(network, folder / "model.pt")
    torch.jit.script(network.eval()).save(folder / "model.ts")
    for name in ("model.pt2", "model.onnx"):
        export(str(folder / name), **overrides(folder))
    return folder


@pytest.fixture(scope="module")
def network(folder: Path) -> OMNet:
    network = OMNet(class_counts=(4, 4, 2), features=FEATURES)
    load_weights(network, folder / "model.pt")
    return network.eval()


@pytest.fixture(scope="module")
def exported(folder: Path) -> dict[str, ExportedNetwork]:
    return {extension: ExportedNetwork(folder / f"model.{extension}", "cpu", WINDOW) for extension in FORMATS}


def overrides(folder: Path) -> dict[str, Any]:
    return {"network_def#features": FEATURES, "checkpoint_path": str(folder / "model.pt")}


@pytest.mark.parametrize("shape", [(1, 4, *WINDOW), (3, 4, 24, 16, 40)], ids=["the window", "another batch and size"])
@pytest.mark.parametrize("extension", FORMATS)
def test_an_export_gives_the_networks_probabilities_in_either_memory_format(
    extension: str, shape: tuple[int, ...], exported: dict[str, ExportedNetwork], network: OMNet
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(x)
        for memory_format in (torch.contiguous_format, torch.channels_last_3d):
            pred = exported[extension].eval()(x.contiguous(memory_format=memory_format))
            torch.testing.assert_close(pred, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("extension", FORMATS)
def test_an_export_computes_in_float32_under_autocast(
    extension: str, exported: dict[str, ExportedNetwork], network: OMNet
) -> None:
    x = torch.randn((1, 4, *WINDOW), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert (network(x) - expected).abs().max() > 1e-4
            pred = exported[extension](x)
    torch.testing.assert_close(pred, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("extension", FORMATS)
def test_inference_from_an_export_saves_the_label_map_of_the_network(
    extension: str, folder: Path, phantoms: Path, tmp_path: Path
) -> None:
    settings = {
        "bundle_root": str(BUNDLE),
        "meta_file": str(BUNDLE / "configs" / "metadata.json"),
        "logging_file": False,
        "dataset_dir": str(phantoms / "phantom_000"),
        "patch_size": [16, 16, 16],
        "amp": False,
    }
    config = str(BUNDLE / "configs" / "inference.json")
    run(config_file=config, **settings, **overrides(folder), output_dir=str(tmp_path / "eager"))
    run(
        config_file=[config, str(BUNDLE / "configs" / "inference_exported.json")],
        **settings,
        exported_path=str(folder / f"model.{extension}"),
        checkpoint_path=str(tmp_path / "absent.pt"),
        output_dir=str(tmp_path / "exported"),
    )
    eager, exported = (
        np.asanyarray(nib.load(tmp_path / name / "phantom_000_seg.nii.gz").dataobj) for name in ("eager", "exported")
    )
    assert len(np.unique(eager)) > 1
    assert np.array_equal(eager, exported)


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("model.ts", {}, r"must end in one of \.pt2, \.onnx, got .*model\.ts; TorchScript .* ckpt_export"),
        ("model.pt2", {"chekpoint_path": "x.pt"}, r"overrides must be ids of .*inference\.json, got chekpoint_path"),
        ("model.pt2", {"checkpoint_path": "absent.pt"}, r"weights must be a file, got absent\.pt"),
        ("model.pt2", {"network_def#features": [2, 2, 2, 2]}, r"weights .*model\.pt belong to another network"),
    ],
    ids=["TorchScript", "an unknown id", "no weights", "weights of another network"],
)
def test_what_cannot_be_exported_leaves_nothing(
    file: str, settings: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export(str(tmp_path / file), **{**overrides(folder), **settings})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.onnx", None, r"must be a file, got .*absent\.onnx"),
        ("model.pt", b"", r"must end in one of \.ts, \.pt2, \.onnx, got .*model\.pt"),
        *[(f"model.{extension}", b"no network", "must hold an exported network, got") for extension in FORMATS],
    ],
    ids=["absent", "another extension", *(f"corrupt {extension}" for extension in FORMATS)],
)
@pytest.mark.filterwarnings("ignore:Unable to")
def test_a_file_that_is_no_export_is_named(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        ExportedNetwork(tmp_path / name, "cpu", WINDOW)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Conv3d(1, 3, 1), r"must map 4 sequences of a window \(16, 32, 24\) to 3 regions, got RuntimeError"),
        (nn.Conv3d(4, 2, 1), r"to 3 regions, got \(1, 2, 16, 32, 24\)"),
        (
            nn.Sequential(nn.Conv3d(4, 3, 1), nn.ReLU6(), nn.Hardtanh(2.0, 3.0)),
            r"in \[0, 1\], got values from 2 to 2",
        ),
        (nn.Sequential(nn.Conv3d(4, 3, 1), nn.Threshold(1e9, math.nan)), r"in \[0, 1\], got values from nan to nan"),
    ],
    ids=["of another input", "of another output", "of logits", "of no numbers"],
)
def test_an_export_of_another_network_is_refused(other: nn.Module, message: str, tmp_path: Path) -> None:
    torch.jit.script(other).save(tmp_path / "model.ts")
    with pytest.raises(ValueError, match=message):
        ExportedNetwork(tmp_path / "model.ts", "cpu", WINDOW)


def test_an_export_that_cannot_take_the_window_is_refused(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"model\.onnx must map 4 sequences of a window \(20, 20, 20\) to 3 regions, got"
    ):
        ExportedNetwork(folder / "model.onnx", "cpu", (20, 20, 20))


def test_onnx_without_its_packages_names_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"model\.onnx: .* pip install onnxruntime"):
        ExportedNetwork(folder / "model.onnx", "cpu", WINDOW)
    monkeypatch.setattr(sys, "argv", ["omnet_monai", "export", str(tmp_path / "model.onnx")])
    with pytest.raises(SystemExit, match="1"):
        command_line.main()
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.endswith("pip install onnx onnxscript\n")
    assert not list(tmp_path.iterdir())


def test_tensorrt_without_a_gpu_or_its_package_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"model\.ts: TensorRT needs an NVIDIA GPU, got the device cpu"):
        ExportedNetwork(folder / "model.ts", "cpu", WINDOW, tensorrt=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(ImportError, match=r"model\.ts: TensorRT engines need Torch-TensorRT"):
        ExportedNetwork(folder / "model.ts", "cuda", WINDOW, tensorrt=True)
