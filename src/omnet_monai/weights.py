"""Weights: written whole or not at all, read strictly; which ones a training run leaves behind."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from omnet_monai.curriculum import Curriculum
from omnet_monai.files import whole_file

__all__ = ["ModelFile", "SaveBest", "SaveLast", "StrictCheckpointLoader", "bare_network", "load_weights"]

logger = logging.getLogger(__name__)


def load_weights(network: nn.Module, path: str | Path) -> None:
    """
    Load a bare state dict, every tensor of which must fit.

    Args:
        network: the network to fill, also inside ``DistributedDataParallel``.
        path: file written by :class:`ModelFile` or with ``torch.save(network.state_dict(), path)``, or the checkpoint
            of a run that was interrupted, whose network as it was is taken.

    Raises:
        ValueError: if the file is missing, is no state dict, belongs to another network, or holds what is no finite
            number; the message names what differs. The network is left as it was.
    """
    if not Path(path).is_file():
        raise ValueError(f"weights must be a file, got {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # The first sentence: torch goes on, over several lines, with the advice to run whatever the file holds.
        reason = f"{type(error).__name__} {str(error).partition('. ')[0]}".strip()
        raise ValueError(f"weights {path} must be a state dict that torch.load reads, got {reason}") from error
    if isinstance(state, dict) and isinstance(state.get("network"), dict):  # a run's checkpoint
        state = state["network"]
    own = bare_network(network).state_dict()
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"weights {path} must hold a bare state dict, got {type(state).__name__} of other things")
    missing = [f"{name} missing" for name in own if name not in state]
    unknown = [f"{name} unknown" for name in state if name not in own]
    # By turns: of names that all have a prefix, such as "module.", the few that are shown must tell it.
    differences = [name for pair in zip_longest(missing, unknown) for name in pair if name]
    differences += [
        f"{name} has shape {tuple(state[name].shape)}, needs {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if differences:
        shown = "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
        raise ValueError(f"weights {path} belong to another network: {shown}")
    broken = [name for name in state if not state[name].isfinite().all()]  # which would find no tumor, and say nothing
    if broken:
        raise ValueError(f"weights {path} must be finite, got NaN or infinity in {', '.join(broken[:5])}")
    bare_network(network).load_state_dict(state)


class StrictCheckpointLoader:
    """
    Load a network's weights when an engine starts, as :func:`load_weights` does, and note their files in the engine's
    state as ``weights``. By its name MONAI's federated client knows it for a checkpoint loader, and leaves it out.

    Args:
        path: file of the weights; of a :class:`~omnet_monai.networks.ModelCascade` a list of one file per network.
        network: the network to fill.

    Raises:
        ValueError: if a list has not one file for each network of a cascade.
    """

    def __init__(self, path: str | Path | Sequence[str | Path], network: nn.Module) -> None:
        single = isinstance(path, str | Path)
        self.paths = [Path(path)] if isinstance(path, str | Path) else [Path(file) for file in path]
        self.networks = [network] if single else list(getattr(network, "networks", []))
        if len(self.paths) != len(self.networks):
            rule = f"a list of weights must have one file for each of the {len(self.networks)} networks of a cascade"
            raise ValueError(f"{rule}, got {', '.join(map(str, self.paths))}")

    def attach(self, engine: Engine) -> None:
        """Register with the engine."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load the weights."""
        for network, path in zip(self.networks, self.paths, strict=True):
            load_weights(network, path)
            logger.info(f"Weights loaded from {path}.")
        engine.state.weights = self.paths  # type: ignore[attr-defined]  # a state takes whatever is noted in it


class ModelFile:
    """
    The file a training run leaves its network in: a bare state dict, convolution weights in float16, which halves its
    size; biases and normalization stay in float32.

    Args:
        path: where to write.
        network: the network to write.

    Attributes:
        best_metric: the validation metric of what is in the file, -inf as long as no validation chose it.
    """

    def __init__(self, path: str | Path, network: nn.Module) -> None:
        self.path = Path(path)
        self.network = network
        self.best_metric = float("-inf")

    def save(self) -> None:
        """Write the network as it is now; from the first process only."""
        if idist.get_rank() == 0:
            state = bare_network(self.network).state_dict()
            state = {key: value.half() if value.dim() > 1 else value for key, value in state.items()}
            with whole_file(self.path) as file:
                torch.save({key: value.contiguous().cpu() for key, value in state.items()}, file)

    def state_dict(self) -> dict[str, float]:
        """Return the best metric, which a resumed run must know."""
        return {"best_metric": self.best_metric}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up the best metric of an interrupted run."""
        self.best_metric = float(state["best_metric"])


class SaveBest:
    """
    Save the network after each validation better than all before, but only while all tasks are active.

    Args:
        model_file: where to save.
        curriculum: knows whether all tasks are active.
        metric: name of the evaluator's metric, larger is better.
    """

    def __init__(self, model_file: ModelFile, curriculum: Curriculum, metric: str) -> None:
        self.model_file = model_file
        self.curriculum = curriculum
        self.metric = metric

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator, after its metrics."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save if this validation is the best so far."""
        value = float(engine.state.metrics[self.metric])
        if self.curriculum.complete and value > self.model_file.best_metric:
            self.model_file.best_metric = value
            self.model_file.save()
            logger.info(f"Best {self.metric} so far, {value:.4f}: saved {self.model_file.path}.")


class SaveLast:
    """
    Save the network after the last epoch, unless validation already chose one.

    Args:
        model_file: where to save.
    """

    def __init__(self, model_file: ModelFile) -> None:
        self.model_file = model_file

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, after validation and before the checkpoint that calls the run finished."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save the last weights."""
        if engine.state.epoch == engine.state.max_epochs and self.model_file.best_metric == float("-inf"):
            self.model_file.save()
            logger.info(f"No validation chose a network: saved the last one as {self.model_file.path}.")


def bare_network(network: nn.Module) -> nn.Module:
    """Return the network inside ``DistributedDataParallel``, or the network itself."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
