"""Around the optimizer: clipping, learning rate, divergence, and how the Caffe release trains where torch differs."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.optimizers import WarmupCosineSchedule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["CorrectedBatchNorm", "DivergenceCheck", "GradientClipping", "RepeatedWarmupCosine", "parameter_groups"]


def parameter_groups(network: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """
    Group parameters as the release does: convolution biases and normalization shifts learn at twice the rate, and
    convolution biases do not decay.

    Args:
        network: the network to train.
        lr: learning rate of everything else.
        weight_decay: weight decay of everything else.

    Returns:
        Parameter groups for a torch optimizer: weights, convolution biases, normalization shifts.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    shifts = {id(norm.bias) for norm in norms}
    groups: list[dict[str, Any]] = [
        {"params": [], "lr": lr, "weight_decay": weight_decay},
        {"params": [], "lr": 2 * lr, "weight_decay": 0.0},
        {"params": [], "lr": 2 * lr, "weight_decay": weight_decay},
    ]
    for name, parameter in network.named_parameters():
        kind = 2 if id(parameter) in shifts else int(name.endswith("bias"))
        groups[kind]["params"].append(parameter)
    return groups


class GradientClipping:
    """
    Scale a step's gradients down to a largest norm, taken over all parameters together.

    Args:
        network: the network to train.
        max_norm: the largest norm, ``None`` for no clipping.
    """

    def __init__(self, network: nn.Module, max_norm: float | None) -> None:
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        """Clip the gradients that the optimizer is about to use, not those that its scaler has enlarged for float16."""
        if self.max_norm is not None:
            if engine.scaler is not None:
                engine.scaler.unscale_(engine.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


class DivergenceCheck:
    """
    End a training whose network holds a number that is not finite, before anything of that network is kept: it finds
    nothing, for which validation has scores all the same. ignite's ``TerminateOnNan`` ends a run as if it were done.

    Args:
        network: the network to train.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, before handlers that validate or save."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """
        Raises:
            ValueError: if a weight or a running statistic is not finite.
        """
        state = self.network.state_dict()
        finite = torch.stack([values.isfinite().all() for values in state.values()]).tolist()
        wrong = [name for name, good in zip(state, finite, strict=True) if not good]
        if wrong:
            rule = f"the network must hold finite numbers after epoch {engine.state.epoch}"
            raise ValueError(f"{rule}, {wrong[0]} and {len(wrong) - 1} others do not: try a lower learning rate")


class RepeatedWarmupCosine(WarmupCosineSchedule):
    """
    MONAI's linear warm-up and decay by a cosine, begun anew every ``t_total`` steps.

    A federated client keeps one trainer for all rounds, and ``t_total`` is the length of one. MONAI's own schedule has
    come down to zero by then, and would climb along the cosine to the full rate through the second round.
    """

    def lr_lambda(self, step: int) -> float:
        """Return the share of the full rate that a step takes; ``step`` counts from 0."""
        return float(super().lr_lambda(step % self.t_total))


class CorrectedBatchNorm:
    """
    Average the statistics of batch normalization as Caffe does: keep ``decay`` of them at each step, and correct for
    the start. At a layer's step t that is torch's update with momentum ``(1 - decay) / (1 - decay**t)``: 1 at its
    first, which is not the run's for a head that joins later.

    Args:
        network: the network to train.
        decay: share of the running statistics that a step keeps, in (0, 1).
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        self.norms: list[Any] = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        self.decay = decay

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the momentum of the coming step."""
        steps = torch.stack([norm.num_batches_tracked for norm in self.norms]).tolist()  # one wait for a GPU, not many
        for norm, step in zip(self.norms, steps, strict=True):
            norm.momentum = (1 - self.decay) / (1 - self.decay ** (step + 1))
