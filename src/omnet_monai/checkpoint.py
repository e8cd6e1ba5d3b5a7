"""A run's checkpoint: saved at each epoch's end, taken up only by the run that wrote it."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from omnet_monai.files import whole_file
from omnet_monai.weights import bare_network, load_weights

__all__ = ["RunCheckpoint", "SaveCheckpoint"]

logger = logging.getLogger(__name__)


class RunCheckpoint:
    """
    Everything an interrupted run needs to go on, as tensors and plain numbers.

    Args:
        path: where to write.
        parts: what to save and restore by ``state_dict`` and ``load_state_dict``; ``network`` and ``curriculum`` among
            them.
        identity: what makes a run the same run, beside the network's layers and the kinds and settings of optimizer and
            schedule, save functions that a schedule is given: its data list and all settings of the training that
            change its result. What JSON does not know counts by its text, which must be the same in another process.
    """

    def __init__(self, path: str | Path, parts: dict[str, Any], identity: Any) -> None:
        self.path = Path(path)
        self.parts = {name: bare_network(part) if isinstance(part, nn.Module) else part for name, part in parts.items()}
        settings = [_settings(part) for part in self.parts.values()]
        text = json.dumps([str(self.parts["network"]), settings, identity], sort_keys=True, default=str)
        self.identity = int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)

    def save(self, epoch: int, finished: bool = False) -> None:
        """Write the state after ``epoch`` epochs; from the first process only."""
        if idist.get_rank() == 0:
            states = {name: part.state_dict() for name, part in self.parts.items()}
            with whole_file(self.path) as file:
                torch.save({"identity": self.identity, "epoch": epoch, "finished": finished, **states}, file)

    def start(self, trainer: Engine, handlers: list[Any] | None = None, weights: str | None = None) -> None:
        """
        Bring a trainer to where its run should start: an entry of the bundle's ``run`` list.

        An unfinished run of the same network, data list and settings is taken up; a finished or a different one never
        is, and none is when a handler brings weights of its own, as MONAI Label's does. The file of a different one
        that is not finished is renamed, as this run takes its place. A fresh network goes through the stages of the
        curriculum, as a resumed run goes on with them.

        Args:
            trainer: the trainer about to run.
            handlers: its handlers.
            weights: file of weights to start from when there is nothing to take up, ``None`` for a fresh network.

        Raises:
            ValueError: if this process does not start where the first one does.
        """
        given = any(isinstance(handler, CheckpointLoader) for handler in handlers or [])
        state = torch.load(self.path, map_location="cpu", weights_only=True) if self.path.is_file() else {}
        own = state.get("identity") == self.identity
        resumed = not given and own and state["epoch"] < trainer.state.max_epochs
        if resumed:
            self._take_up(state, trainer)
        first = int(idist.broadcast(float(trainer.state.epoch), src=0))  # type: ignore[arg-type]
        if trainer.state.epoch != first:
            rule = f"all processes must start after the same epoch, the first one after {first}"
            raise ValueError(f"{rule}, got {trainer.state.epoch} by {self.path}: do all machines share that file?")
        if state and not own and not state.get("finished"):
            self._set_aside(state["epoch"])
        if resumed:
            logger.info(f"Resuming after epoch {trainer.state.epoch} of {trainer.state.max_epochs} from {self.path}.")
        elif weights is not None:
            load_weights(self.parts["network"], weights)
        elif not given:
            self.parts["curriculum"].staged = True

    def _take_up(self, state: dict[str, Any], trainer: Engine) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        trainer.state.epoch = state["epoch"]
        trainer.state.iteration = state["epoch"] * trainer.state.epoch_length

    def _set_aside(self, epoch: int) -> None:
        """Rename the file of another run, to a name that no file has; from the first process only."""
        if idist.get_rank() > 0:
            return
        stem, number = f"{self.path.stem}_epoch{epoch}", 1
        kept = self.path.with_stem(stem)
        while kept.exists():
            number += 1
            kept = self.path.with_stem(f"{stem}_{number}")
        self.path.replace(kept)
        logger.warning(
            f"{self.path} was of a run with other settings, after its epoch {epoch}: renamed to {kept.name}."
        )


class SaveCheckpoint:
    """
    Save a run's checkpoint at the end of each epoch.

    Args:
        checkpoint: what to save.
    """

    def __init__(self, checkpoint: RunCheckpoint) -> None:
        self.checkpoint = checkpoint

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, as the last of its handlers."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save the state after this epoch."""
        self.checkpoint.save(engine.state.epoch, finished=engine.state.epoch == engine.state.max_epochs)


def _settings(part: Any) -> Any:
    """Return what an optimizer or a schedule was made with, but for how far it has come; nothing of any other part."""
    if isinstance(part, Optimizer):
        groups = [{key: group[key] for key in group.keys() - {"params", "lr"}} for group in part.param_groups]
        return [type(part).__name__, groups]
    if isinstance(part, LRScheduler):
        state = {key: value for key, value in part.state_dict().items() if key != "last_epoch" and key[0] != "_"}
        return [type(part).__name__, state]
    return None
