"""What a network costs in an evaluation: parameters, forward passes, FLOPs and seconds."""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from omnet_monai.files import whole_file
from omnet_monai.networks import OMNet

__all__ = ["NetworkCost", "machine"]


class NetworkCost:
    """
    Watch the network of an evaluation, and write a JSON file of what it cost:

    - ``parameters``: number of trainable parameters;
    - ``passes_per_window``: how many networks a window went through in the mean, 1 for OM-Net, up to 3 for a cascade;
    - ``flops_per_case``: floating-point operations of convolutions and matrix products, two for a multiply-add,
      counted once for a window by torch's ``FlopCounterMode`` and multiplied by the windows that were run;
    - ``seconds_per_case``: time inside the network, without reading, blending of windows, scoring and drawing.

    Args:
        network: the evaluator's network, an :class:`~omnet_monai.networks.OMNet` or a cascade of them.
        path: JSON file to write.
    """

    def __init__(self, network: nn.Module, path: str | Path) -> None:
        self.network = network
        self.path = Path(path)
        self.parts = [module for module in network.modules() if isinstance(module, OMNet)]
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._begin()

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.count_cases)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        """Begin to watch."""
        self._begin()
        self.hooks = [part.register_forward_pre_hook(self._count_pass) for part in self.parts]
        self.hooks.append(self.network.register_forward_pre_hook(self._enter))
        self.hooks.append(self.network.register_forward_hook(self._leave))

    def count_cases(self, engine: Engine) -> None:
        """Count the batch's cases."""
        self.cases += len(engine.state.batch)  # type: ignore[arg-type]  # decollated

    def write(self, engine: Engine) -> None:
        """Stop watching, and write the file."""
        for hook in self.hooks:
            hook.remove()
        passes = sum(self.passes.values())
        flops = sum(self._flops(part, shape) * number for (part, shape), number in self.passes.items())
        cost = {
            "parameters": sum(p.numel() for p in self.network.parameters() if p.requires_grad),
            "passes_per_window": passes / self.windows,
            "flops_per_case": flops / self.cases,
            "seconds_per_case": self.seconds / self.cases,
        }
        with whole_file(self.path) as file:
            file.write_text(json.dumps(cost, indent=1) + "\n", encoding="utf-8")

    def _begin(self) -> None:
        self.passes: Counter[tuple[nn.Module, tuple[int, ...]]] = Counter()
        self.cases, self.windows, self.seconds, self.entered = 0, 0, 0.0, 0.0

    def _enter(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.windows += len(args[0])
        self.entered = self._now(args[0])

    def _leave(self, module: nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> None:
        self.seconds += self._now(args[0]) - self.entered

    def _count_pass(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.passes[module, tuple(args[0].shape[1:])] += len(args[0])

    @staticmethod
    def _now(x: torch.Tensor) -> float:
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter()

    @staticmethod
    def _flops(part: nn.Module, shape: tuple[int, ...]) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            part(torch.zeros(1, *shape, device=next(part.parameters()).device))
        return counter.get_total_flops()


def machine() -> str:
    """Name processor, accelerator and torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"
