"""When a training run validates."""

from __future__ import annotations

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import ValidationHandler

__all__ = ["ValidationToTheEnd"]


class ValidationToTheEnd(ValidationHandler):
    """
    Validate every so many epochs and after the last one, the only network that the whole schedule has trained.
    MONAI's own handler leaves out the epochs after the last multiple of its interval.

    Args:
        validator: the evaluator to run.
        interval: epochs between two validations.

    Raises:
        ValueError: for an interval below 1.
    """

    def __init__(self, validator: Evaluator, interval: int) -> None:
        if interval < 1:
            raise ValueError(f"interval must be at least one epoch, got {interval}")
        super().__init__(interval, validator)

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, before handlers that save."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self._due), self)

    def _due(self, engine: Engine, epoch: int) -> bool:
        return epoch % self.interval == 0 or epoch == engine.state.max_epochs
