"""The curriculum: task 1 alone, then task 2 joins, then task 3. Its whole state is how many tasks are active."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.utils import convert_to_tensor

from omnet_monai.augmentation import BatchAugmentation
from omnet_monai.losses import OMNetLoss
from omnet_monai.regions import TASKS, tasks_named

__all__ = ["Curriculum", "CurriculumHandler", "PrepareTaskBatch"]

logger = logging.getLogger(__name__)


class Curriculum:
    """
    Decide how many of a network's tasks are active. A task joins by whichever of two triggers comes first (the paper
    says "until the loss flattens"; both triggers are ours). With neither, all are active from the first step.

    Args:
        milestones: task 2 and task 3 join once these fractions of the run's epochs are done, ascending in [0, 1];
            ``None`` for no milestones.
        patience: the next task joins when the newest task's epoch-mean loss has not improved for this many epochs;
            ``None`` for no plateau trigger.
        min_change: a smaller fall of the loss is no improvement.
        tasks: names of the network's tasks, ``None`` for all three. The only task of a network is always active.

    Attributes:
        num_tasks: how many tasks are active.
        staged: whether the run goes through the stages; a run that nobody says this of was given its weights.

    Raises:
        ValueError: for milestones that are not two ascending fractions, a patience below 1, and for unknown tasks.
    """

    def __init__(
        self,
        milestones: Sequence[float] | None = None,
        patience: int | None = None,
        min_change: float = 0.0,
        tasks: Sequence[str] | None = None,
    ) -> None:
        if milestones is not None and (len(milestones) != 2 or not 0 <= milestones[0] <= milestones[1] <= 1):
            raise ValueError(f"milestones must be two ascending fractions in [0, 1], got {milestones}")
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be at least one epoch, got {patience}")
        self.tasks = tasks_named(tasks)
        self.milestones = milestones
        self.patience = patience
        self.min_change = min_change
        self.num_tasks = 1
        self.best_loss = math.inf
        self.stale_epochs = 0
        self.staged = False

    @property
    def complete(self) -> bool:
        """Whether all tasks are active."""
        return self.num_tasks == len(self.tasks)

    def activate_all(self) -> None:
        """Make all tasks active."""
        self.num_tasks = len(self.tasks)

    def begin_epoch(self, epoch: int, max_epochs: int) -> None:
        """Let tasks join by either trigger; ``epoch`` counts from 1. With fewer epochs than tasks all join at once."""
        if max_epochs < len(self.tasks) or (self.milestones is None and self.patience is None):
            self.activate_all()
            return
        if self.patience is not None and self.stale_epochs >= self.patience:
            self._join(self.num_tasks + 1)
        elif self.milestones is not None:
            # A thousandth of an epoch makes up for the rounding of the fractions; each stage lasts an epoch at least.
            joined = sum(epoch - 1 >= fraction * max_epochs - 1e-3 for fraction in self.milestones)
            if 1 + joined > self.num_tasks and not self.complete:
                self._join(self.num_tasks + 1)

    def end_epoch(self, loss: float) -> None:
        """Watch whether the newest task's epoch-mean ``loss`` flattens; the next task joins with the next epoch."""
        if self.complete:
            return
        if loss < self.best_loss - self.min_change:
            self.best_loss, self.stale_epochs = loss, 0
        else:
            self.stale_epochs += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain numbers."""
        return {"num_tasks": self.num_tasks, "best_loss": self.best_loss, "stale_epochs": self.stale_epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of an interrupted run."""
        self.num_tasks, self.best_loss = int(state["num_tasks"]), float(state["best_loss"])
        self.stale_epochs = int(state["stale_epochs"])
        self.staged = True

    def _join(self, num_tasks: int) -> None:
        self.num_tasks, self.best_loss, self.stale_epochs = num_tasks, math.inf, 0


class CurriculumHandler:
    """
    Drive a curriculum by a trainer's epochs; log each change of stage and each epoch's loss per task, and publish both
    among the trainer's metrics, where every tracker finds them: ``curriculum/num_tasks`` and ``loss/<task>``.

    Only a run that its checkpoint's ``start`` found to be fresh or resumed goes through the stages. Any other was given
    its weights (by the user, MONAI Label, a federated round): all tasks are active from the first step.

    Args:
        curriculum: the curriculum to drive.
        loss_function: the trainer's loss, whose per-task losses feed the plateau trigger.
    """

    def __init__(self, curriculum: Curriculum, loss_function: OMNetLoss) -> None:
        self.curriculum = curriculum
        self.loss_function = loss_function
        self.losses: list[torch.Tensor] = []
        self.announced = 0

    def attach(self, engine: Engine) -> None:
        """Register with the trainer; after handlers that load weights, before handlers that track or save."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_STARTED, self.begin_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.end_epoch)

    def start(self, engine: Engine) -> None:
        """Skip the stages for a network that was given its weights."""
        if not self.curriculum.staged:
            self.curriculum.activate_all()

    def begin_epoch(self, engine: Engine) -> None:
        """Let tasks join; the first process decides for all."""
        self.curriculum.begin_epoch(engine.state.epoch, int(engine.state.max_epochs or 0))
        # Processes that disagreed would run different heads, and wait for each other's gradients without end.
        first = torch.as_tensor(idist.broadcast(torch.tensor(self.curriculum.num_tasks), src=0))
        self.curriculum.num_tasks = int(first)
        self.losses = []
        if self.curriculum.num_tasks != self.announced:
            self.announced = self.curriculum.num_tasks
            names = ", ".join(task.name for task in self.curriculum.tasks[: self.announced])
            active = f"{self.announced} of {len(self.curriculum.tasks)} tasks active ({names})"
            logger.info(f"Curriculum: {active}, epoch {engine.state.epoch}.")

    def collect(self, engine: Engine) -> None:
        """Keep the step's per-task losses; without a sync on a GPU."""
        self.losses.append(self.loss_function.task_losses)

    def end_epoch(self, engine: Engine) -> None:
        """Average the epoch's losses over steps and processes, and watch whether the newest task's flattens."""
        means = torch.stack(self.losses).nanmean(0)
        means = torch.as_tensor(idist.all_reduce(means)) / idist.get_world_size()
        self.curriculum.end_epoch(float(means[-1]))
        named = {task.name: float(mean) for task, mean in zip(self.curriculum.tasks, means, strict=False)}
        losses = ", ".join(f"{name} {mean:.3f}" for name, mean in named.items())
        logger.info(f"Epoch {engine.state.epoch} of {engine.state.max_epochs}: loss {losses}.")
        engine.state.metrics["curriculum/num_tasks"] = self.curriculum.num_tasks
        engine.state.metrics.update({f"loss/{name}": mean for name, mean in named.items()})
        if engine.state.epoch == engine.state.max_epochs and not self.curriculum.complete:
            active = f"{len(named)} of {len(self.curriculum.tasks)} tasks active"
            untrained = ", ".join(task.name for task in self.curriculum.tasks[len(named) :])
            logger.warning(f"The run ends with {active}: its weights know nothing of {untrained}.")


class PrepareTaskBatch:
    """
    Keep the patches of tasks up to the newest active one, and tell the network how many of its tasks are active: the
    trainer's ``prepare_batch``.

    Args:
        curriculum: knows how many tasks are active.
        augmentation: what to do with image and label once they are on the device; ``None`` for nothing.
    """

    def __init__(self, curriculum: Curriculum, augmentation: BatchAugmentation | None = None) -> None:
        self.curriculum = curriculum
        self.augmentation = augmentation

    def __call__(
        self, batch: dict[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], tuple, dict[str, int]]:
        """
        Args:
            batch: ``image`` ``(B, C, *spatial)``, ``label`` ``(B, 1, *spatial)`` and ``task`` ``(B,)``.
            device: where the tensors go.
            non_blocking: copy asynchronously.
            kwargs: further arguments of ``torch.Tensor.to``.

        Returns:
            Image, target of :class:`~omnet_monai.losses.OMNetLoss`, no positional arguments, ``num_tasks``.

        Raises:
            ValueError: if no patch is left.
        """
        num_tasks = self.curriculum.num_tasks
        image, label, task = (
            convert_to_tensor(batch[key], track_meta=False).to(device=device, non_blocking=non_blocking, **kwargs)
            for key in ("image", "label", "task")
        )
        # Not only patches of the network's own tasks: a case without core lends a lone precise task others.
        active = torch.as_tensor(batch["task"]) <= TASKS.index(self.curriculum.tasks[num_tasks - 1])
        if not active.any():
            names = ", ".join(task.name for task in self.curriculum.tasks[:num_tasks])
            rule = f"each step must have a patch of an active task ({names}), got patches of later ones alone"
            raise ValueError(f"{rule}: patches_per_task must not be 0 for all of them")
        if not active.all():
            kept = active.nonzero()[:, 0].to(image.device)  # found on the CPU, so that no GPU is waited for
            image, label, task = (each.index_select(0, kept) for each in (image, label, task))
        image = image.float()  # kept in half precision up to here
        if self.augmentation is not None:
            image, label = self.augmentation(image, label)
        return image, {"label": label, "task": task}, (), {"num_tasks": num_tasks}
