"""What a network costs in an evaluation: parameters, forward passes, FLOPs and seconds."""

from __future__ import annotations

import copy
import json
import platform
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import monai
import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from omnet_monai.files import whole_file
from omnet_monai.networks import OMNet

__all__ = ["NetworkCost", "Passes", "machine"]


class Passes:
    """
    Watch a network: which of its networks ran on how many windows, and how long that took.

    Args:
        network: a network, or a cascade of :class:`~omnet_monai.networks.OMNet`, each of which is then watched too.
        timed: measure the time inside it, for which a GPU is waited for before and after each batch of windows.

    Attributes:
        windows: windows that went through the whole.
        seconds: time inside it, 0 if that is not measured.
    """

    def __init__(self, network: nn.Module, timed: bool = True) -> None:
        self.windows, self.seconds, self.timed = 0, 0.0, timed
        self.passes: Counter[tuple[nn.Module, tuple[int, ...]]] = Counter()
        parts: list[nn.Module] = [module for module in network.modules() if isinstance(module, OMNet)]
        # Bound to the network itself: an inferer runs a copy of it for each case, which must not be kept.
        self.hooks = [part.register_forward_pre_hook(partial(self._count, part)) for part in parts or [network]]
        self.hooks += [network.register_forward_pre_hook(self._enter), network.register_forward_hook(self._leave)]

    def stop(self) -> None:
        """Watch no longer."""
        for hook in self.hooks:
            hook.remove()

    def flops(self) -> int:
        """
        Return the floating-point operations of convolutions and matrix products, two for a multiply-add: counted for
        one window by torch's ``FlopCounterMode``, and multiplied by the windows that were run.
        """
        return sum(_flops(part, shape) * number for (part, shape), number in self.passes.items())

    def _enter(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.windows += len(args[0])
        self.seconds -= _now(args[0]) if self.timed else 0

    def _leave(self, module: nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> None:
        self.seconds += _now(args[0]) if self.timed else 0

    def _count(self, part: nn.Module, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.passes[part, tuple(args[0].shape[1:])] += len(args[0])


class NetworkCost:
    """
    Watch the network of an evaluation, and write a JSON file of what it cost: the number of trainable ``parameters``,
    ``passes_per_window`` (1 for OM-Net, up to 3 for a cascade), ``flops_per_case``, and ``seconds_per_case`` inside the
    network, without reading, blending of windows, scoring and drawing; means over the cases of all processes.

    Args:
        network: the evaluator's network, an :class:`~omnet_monai.networks.OMNet` or a cascade of them.
        path: JSON file to write.
    """

    def __init__(self, network: nn.Module, path: str | Path) -> None:
        self.network = network
        self.path = Path(path)
        self.cases = 0

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.count_cases)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        """Begin to watch."""
        self.passes, self.cases = Passes(self.network), 0

    def count_cases(self, engine: Engine) -> None:
        """Count the batch's cases."""
        self.cases += len(engine.state.batch)  # type: ignore[arg-type]  # decollated

    def write(self, engine: Engine) -> None:
        """Stop watching, and let the first process write the file."""
        self.passes.stop()
        watched = self.passes
        own = self.cases, watched.windows, sum(watched.passes.values()), watched.flops(), watched.seconds
        cases, windows, passes, flops, seconds = (idist.all_reduce(number) for number in own)
        if not cases or idist.get_rank() > 0:  # if none could be read, the report tells
            return
        cost = {
            "parameters": sum(p.numel() for p in self.network.parameters() if p.requires_grad),
            "passes_per_window": passes / windows,
            "flops_per_case": flops / cases,
            "seconds_per_case": seconds / cases,
        }
        with whole_file(self.path) as file:
            file.write_text(json.dumps(cost, indent=1) + "\n", encoding="utf-8")


def machine() -> str:
    """Name processor, accelerator and torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    units = [unit for unit in ("avx512_bf16", "amx_bf16") if any(unit in line for line in lines)]
    versions = f"torch {torch.__version__}, MONAI {monai.__version__}"
    return f"{' '.join([name, *units])}, {torch.get_num_threads()} threads{gpu}, {versions}"


def _now(x: torch.Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()


def _flops(part: nn.Module, shape: tuple[int, ...]) -> int:
    shapes_alone = copy.deepcopy(part).float().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes_alone(torch.zeros(1, *shape, device="meta"))
    return counter.get_total_flops()
