"""Networks exported to a file, run in the place of the network that a config defines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from monai.utils import optional_import
from torch import nn
from torch.export.passes import move_to_device_pass

from omnet_monai.regions import REGIONS, SEQUENCES

__all__ = ["ExportedNetwork"]

Forward = Callable[[torch.Tensor], torch.Tensor]


class ExportedNetwork(nn.Module):
    """
    Run a network from the file it was exported to; the extension tells the format: ``.ts`` is TorchScript, ``.pt2`` is
    ``torch.export``, and ``.onnx`` is run by ONNX Runtime.

    It computes as exported, in float32, whatever autocast says: ``.pt2`` and ``.onnx`` carry their data types in the
    file, and a scripted network under autocast rounds in other places than the network itself.

    Args:
        path: the file.
        device: where to run it.
        window: spatial size that it must take in voxels; tried once, with zeros.
        tensorrt: whether the TorchScript file holds TensorRT engines.

    Raises:
        ImportError: if the format needs a package that is not installed.
        ValueError: if the file is missing, has another extension, cannot be read, or does not map the four sequences
            of a window to the probabilities of the three regions; and for TensorRT without a GPU.
    """

    def __init__(
        self, path: str | Path, device: torch.device | str, window: Sequence[int], tensorrt: bool = False
    ) -> None:
        super().__init__()
        path, device = Path(path), torch.device(device)
        if path.suffix not in _OPENERS:
            raise ValueError(f"an exported network must end in one of {', '.join(_OPENERS)}, got {path}")
        if not path.is_file():
            raise ValueError(f"an exported network must be a file, got {path}")
        if tensorrt:
            _require_tensorrt(path, device)
        if path.suffix == ".onnx" and not optional_import("onnxruntime")[1]:
            raise ImportError(f"{path}: ONNX files need ONNX Runtime: pip install onnxruntime")
        try:
            self._forward = _OPENERS[path.suffix](path, device)
        except Exception as error:
            raise ValueError(f"{path} must hold an exported network, got {_reason(error)}") from error
        self._try(path, torch.zeros(1, len(SEQUENCES), *window, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalized sequences ``(B, 4, *spatial)`` to region probabilities ``(B, 3, *spatial)``, float32."""
        with torch.autocast(x.device.type, enabled=False):
            return self._forward(x)

    def _try(self, path: Path, x: torch.Tensor) -> None:
        rule = f"{path} must map {len(SEQUENCES)} sequences of a window {tuple(x.shape[2:])} to {len(REGIONS)} regions"
        try:
            with torch.no_grad():
                pred = self(x)
        except Exception as error:
            raise ValueError(f"{rule}, got {_reason(error)}") from error
        if not isinstance(pred, torch.Tensor) or pred.shape != (1, len(REGIONS), *x.shape[2:]):
            raise ValueError(f"{rule}, got {tuple(pred.shape) if isinstance(pred, torch.Tensor) else type(pred)}")
        if not (pred.min() >= 0 and pred.max() <= 1):  # neither holds of NaN, as of float16 that overflowed
            raise ValueError(f"{rule}' probabilities in [0, 1], got values from {pred.min():.3g} to {pred.max():.3g}")


def _reason(error: Exception) -> str:
    """Return an error's type and the last line of its message, which TorchScript puts a traceback before."""
    return f"{type(error).__name__}: {[*str(error).strip().splitlines(), ''][-1]}"


def _require_tensorrt(path: Path, device: torch.device) -> None:
    if device.type != "cuda" or not torch.cuda.is_available():
        raise ValueError(f"{path}: TensorRT needs an NVIDIA GPU, got the device {device}")
    # The import makes TorchScript know TensorRT's engines.
    if not optional_import("torch_tensorrt")[1]:
        raise ImportError(f"{path}: TensorRT engines need Torch-TensorRT: pip install torch-tensorrt")


def _open_torchscript(path: Path, device: torch.device) -> Forward:
    return torch.jit.load(path, map_location=device).eval().forward


def _open_program(path: Path, device: torch.device) -> Forward:
    # A plain function: registered as a submodule, the program would refuse to be set to evaluation mode.
    return move_to_device_pass(torch.export.load(path), device).module().forward


def _open_onnx(path: Path, device: torch.device) -> Forward:
    runtime, _ = optional_import("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    session = runtime.InferenceSession(path, options, providers=[*providers, "CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {name: x.cpu().numpy()})[0]).to(x.device)

    return forward


_OPENERS: dict[str, Callable[[Path, torch.device], Forward]] = {
    ".ts": _open_torchscript,
    ".pt2": _open_program,
    ".onnx": _open_onnx,
}
