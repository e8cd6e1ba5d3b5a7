"""Export a bundle's network to the formats that MONAI does not write: torch.export, and ONNX with free sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import

from omnet_monai.demo import bundle_root, inference_config
from omnet_monai.files import whole_file
from omnet_monai.networks import OMNet
from omnet_monai.weights import load_weights

__all__ = ["export"]


def export(file: str, bundle: str = "", **overrides: Any) -> None:
    """
    Write the network of inference.json with its weights as ``.pt2`` or ``.onnx``, in float32.

    Batch size and spatial sides stay free; sides are multiples of 8, from 16 on. TorchScript is written by ``python -m
    monai.bundle ckpt_export``.

    Args:
        file: where to write; the extension tells the format.
        bundle: root of the bundle, by default the current folder if it is one, or that beside this package.
        overrides: ids of inference.json to override, ``checkpoint_path`` among them.

    Raises:
        ImportError: if ONNX is asked for and not installed.
        ValueError: for another extension, an id that inference.json does not have, or weights that do not fit.
    """
    path, root = Path(file), bundle_root(bundle)
    if path.suffix not in _WRITERS:
        rule = f"file must end in one of {', '.join(_WRITERS)}, got {path}"
        raise ValueError(f"{rule}; TorchScript is written by python -m monai.bundle ckpt_export")
    if path.suffix == ".onnx" and not all(optional_import(name)[1] for name in ("onnx", "onnxscript")):
        raise ImportError(f"{path}: writing ONNX needs onnx and onnxscript: pip install onnx onnxscript")
    network = _network(root, overrides)
    with whole_file(path) as temporary:
        _WRITERS[path.suffix](network, temporary)
    print(f"exported to {path}, {path.stat().st_size / 1e6:.1f} MB")


def _network(root: Path, overrides: dict[str, Any]) -> OMNet:
    parser = inference_config(root, overrides)
    network = parser.get_parsed_content("network_def")
    load_weights(network, parser.get_parsed_content("checkpoint_path"))
    return network.eval()


def _sample(network: OMNet) -> tuple[torch.Tensor, dict[int, Any]]:
    """Return an input to export with, all sides different, and its free sizes: those that need no padding."""
    weight, divisor = next(network.parameters()), network.backbone.divisor
    image = torch.zeros(2, weight.shape[1], *(divisor * side for side in range(2, weight.dim())))
    sides = {axis: divisor * torch.export.Dim(f"n{axis - 2}", min=2) for axis in range(2, image.dim())}
    return image, {0: torch.export.Dim("batch"), **sides}


def _write_program(network: OMNet, path: Path) -> None:
    image, sizes = _sample(network)
    torch.export.save(torch.export.export(network, (image,), dynamic_shapes=(sizes,)), path)


def _write_onnx(network: OMNet, path: Path) -> None:
    image, sizes = _sample(network)
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["pred"]}
    # One file: without external_data=False the weights lie beside it.
    torch.onnx.export(
        network, (image,), path, dynamo=True, dynamic_shapes=(sizes,), external_data=False, verbose=False, **names
    )


_WRITERS = {".pt2": _write_program, ".onnx": _write_onnx}
