"""What trackers such as TensorBoard and MLflow show beside losses and metrics: learning rate, pictures of a case."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.transforms import ResampleToMatch
from monai.utils import optional_import, path_to_sqlite_uri

from omnet_monai.pictures import save_overlay
from omnet_monai.regions import classes_from_regions

__all__ = ["LearningRate", "ValidationPicture", "local_database"]

logger = logging.getLogger(__name__)


class LearningRate:
    """
    Publish the learning rate that an epoch begins with as ``learning_rate`` among the trainer's metrics, where every
    tracker finds it; of several parameter groups the lowest.
    """

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Publish the rate."""
        groups: list[dict[str, Any]] = engine.optimizer.param_groups  # type: ignore[attr-defined]  # of MONAI's trainer
        engine.state.metrics["learning_rate"] = min(float(group["lr"]) for group in groups)


class ValidationPicture:
    """
    Draw the first case of each validation with the outlines of its regions: as
    ``folder/<case>_epoch<number>.png`` and in TensorBoard; without matplotlib, a line in the log says that it is not.

    Args:
        folder: where to write; for MLflow, a folder of artifacts.
        summary_writer: TensorBoard writer for the image ``validation``, ``None`` for none.
    """

    def __init__(self, folder: str | Path, summary_writer: Any = None) -> None:
        self.folder = Path(folder)
        self.summary_writer = summary_writer
        self.match = ResampleToMatch(mode="nearest")

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator, before handlers that upload the pictures."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw the case of the validation's first iteration."""
        if engine.state.iteration != 1:
            return
        if not optional_import("matplotlib")[1]:  # as in a lean environment of MONAI Label
            logger.warning("No picture of the validation case: matplotlib is not installed.")
            return
        item: dict[str, Any] = engine.state.output[0]  # type: ignore[index]  # decollated, regions after postprocessing
        image, epoch = item["image"].cpu(), engine.state.epoch
        # The image is cropped and in LPS axes, the regions are back on the grid of the case's files.
        label, truth = (self.match(classes_from_regions(item[key].cpu()), image) for key in ("pred", "label"))
        path = self.folder / f"{image.meta['case']}_epoch{epoch:04}.png"
        save_overlay(_from_black(image), label, path, truth=truth, title=f"{image.meta['case']}, epoch {epoch}")
        if self.summary_writer is not None:
            import matplotlib.image  # here, because it takes longer to import than everything else

            picture = matplotlib.image.imread(path)
            self.summary_writer.add_image("validation", picture, epoch, dataformats="HWC")


def local_database(folder: str | Path) -> str:
    """
    Name the SQLite database in a folder that MLflow tracks to, as a URI; the folder is made.

    Raises:
        ImportError: without MLflow.
    """
    if not optional_import("mlflow")[1]:
        raise ImportError("tracking by MLflow needs its package: pip install mlflow-skinny sqlalchemy alembic")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return path_to_sqlite_uri(str(Path(folder) / "mlruns.db"))


def _from_black(image: torch.Tensor) -> torch.Tensor:
    """Shift z-scores so that each sequence starts at 0, and the background, 0 before, lies there too."""
    darkest = image.flatten(1).min(1).values.reshape(-1, 1, 1, 1)
    return torch.where(image == 0, torch.zeros_like(image), image - darkest)
