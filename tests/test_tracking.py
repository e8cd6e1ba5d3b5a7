"""What trackers get: metrics of the engines, and pictures of a validation case."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import run
from monai.data import MetaTensor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from omnet_monai.pictures import PREDICTED
from omnet_monai.regions import regions_from_classes
from omnet_monai.tracking import LearningRate, ValidationPicture, local_database

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
TINY: dict[str, Any] = {
    "network_def#features": [4, 4, 8, 8],
    "patch_size": [24, 16, 16],
    "steps_per_epoch": 2,
    "cases_per_step": 1,
    "patches_per_task": 1,
    "learning_rate": 0.01,
    "train#trainer#max_epochs": 3,
    "curriculum#milestones": [1 / 3, 2 / 3],
    "fold": 0,
    "val_interval": 3,
}
SCALARS = {"curriculum/num_tasks", "learning_rate", "loss/coarse", "loss/refined", "loss/precise", "loss/step"}
SCALARS |= {"dice_mean", "dice_WT", "dice_TC", "dice_ET"}


def settings(folder: Path, phantoms: Path) -> dict[str, Any]:
    places = {"dataset_dir": phantoms, "ckpt_dir": folder, "run_dir": folder / "run", "output_dir": folder / "out"}
    places["cache_dir"] = folder / "cache"
    return {**TINY, **{name: str(place) for name, place in places.items()}, "logging_file": False}


def test_the_rate_that_an_epoch_begins_with_is_a_metric_of_the_trainer() -> None:
    # Two groups, the first at ten times the rate; each step halves both, and there are two steps in an epoch.
    trainer = Engine(lambda engine, batch: None)
    trainer.optimizer = SimpleNamespace(param_groups=[{"lr": 8.0}, {"lr": 0.8}])
    LearningRate().attach(trainer)

    def halve(engine: Engine) -> None:
        for group in engine.optimizer.param_groups:
            group["lr"] /= 2

    seen: list[float] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, halve)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: seen.append(engine.state.metrics["learning_rate"]))
    trainer.run([0, 0], max_epochs=3)
    assert seen == pytest.approx([0.8, 0.2, 0.05])


def validated(case: str) -> list[dict[str, MetaTensor]]:
    """Make what an evaluator has at last: a cropped, flipped image, and regions on the grid of the files."""
    label = torch.zeros(1, 24, 20, 16, dtype=torch.uint8)
    label[:, 4:16, 6:14, 4:12] = 2
    label[:, 12:16, 6:14, 4:12] = 3
    regions = MetaTensor(regions_from_classes(label), affine=torch.eye(4))
    pixels = label[:, 2:22, 2:18, 2:14].float().flip(1, 2) - 1.5  # darkest where there is no tumor
    pixels[:, 0] = 0  # background
    affine = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([21.0, 17.0, 2.0])
    image = MetaTensor(pixels.expand(4, -1, -1, -1).clone(), affine=affine, meta={"case": case})
    return [{"image": image, "pred": regions, "label": regions.clone()}]


def evaluate(handler: ValidationPicture, epoch: int) -> None:
    engine = Engine(lambda engine, batch: batch)
    engine.state.max_epochs, engine.state.epoch, engine.state.iteration = epoch, epoch - 1, 0
    handler.attach(engine)
    engine.run([validated("first"), validated("second")], max_epochs=epoch)


def test_each_validation_leaves_a_picture_of_its_first_case(tmp_path: Path) -> None:
    handler = ValidationPicture(tmp_path / "validation")
    evaluate(handler, 10)
    evaluate(handler, 20)
    names = ["first_epoch0010.png", "first_epoch0020.png"]
    assert sorted(path.name for path in (tmp_path / "validation").iterdir()) == names


def test_the_outlines_lie_on_the_image_whatever_grid_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Any, ...]] = []

    def draw(image: Any, label: Any, path: Path, truth: Any, title: str) -> None:
        drawn.append((image, label, truth, title))
        path.write_bytes(b"")

    monkeypatch.setattr("omnet_monai.tracking.save_overlay", draw)
    evaluate(ValidationPicture(tmp_path), 3)
    ((image, label, truth, title),) = drawn
    assert title == "first, epoch 3"
    assert torch.equal(torch.as_tensor(label), torch.as_tensor(truth))
    # The image was made from the label's own codes, less 1.5; its darkest value is drawn as 0, and so is background.
    pixels = torch.as_tensor(image)
    assert label.shape == (1, 20, 16, 12)
    assert torch.equal(pixels[:1, 1:], torch.as_tensor(label)[:, 1:].to(pixels.dtype))
    assert not pixels[:, 0].any()


def test_tensorboard_has_the_picture_too(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        evaluate(ValidationPicture(tmp_path / "validation", writer), 7)
    (event,) = EventAccumulator(str(tmp_path)).Reload().Images("validation")
    picture = matplotlib.image.imread(tmp_path / "validation" / "first_epoch0007.png")
    assert event.step == 7
    assert (event.height, event.width) == picture.shape[:2]
    outline = np.abs(picture[..., :3] - matplotlib.colors.to_rgb(PREDICTED)).max(axis=2) < 0.1
    assert outline.sum() > 50


def test_without_matplotlib_validation_goes_on_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("omnet_monai.tracking.optional_import", lambda name: (None, False))
    evaluate(ValidationPicture(tmp_path / "validation"), 1)
    assert caplog.messages == ["No picture of the validation case: matplotlib is not installed."]
    assert not (tmp_path / "validation").exists()


def test_tensorboard_gets_all_that_is_tracked(phantoms: Path, tmp_path: Path) -> None:
    run(config_file=str(CONFIGS / "train.json"), **settings(tmp_path, phantoms))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert set(events.Tags()["scalars"]) == SCALARS
    assert events.Tags()["images"] == ["validation"]
    assert [(event.step, event.value) for event in events.Scalars("curriculum/num_tasks")] == [(1, 1), (2, 2), (3, 3)]
    # A cosine over six steps: (1 + cos(60 degrees)) / 2 = 0.75 at the second epoch, 0.25 at the third.
    rates = [event.value for event in events.Scalars("learning_rate")]
    assert rates == pytest.approx([0.01, 0.0075, 0.0025])


# SQLAlchemy and MLflow, of their own code.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_mlflow_gets_all_that_tensorboard_gets(phantoms: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    tracking = str(CONFIGS / "mlflow.json")
    run(config_file=str(CONFIGS / "train.json"), tracking=tracking, **settings(tmp_path, phantoms))
    client = mlflow.MlflowClient(local_database(tmp_path / "run"))
    (found,) = client.search_runs([client.get_experiment_by_name("omnet").experiment_id])
    assert found.info.status == "FINISHED"
    assert set(found.data.metrics) >= SCALARS
    assert found.data.params["fold"] == "0"
    stages = client.get_metric_history(found.info.run_id, "curriculum/num_tasks")
    assert [(entry.step, entry.value) for entry in stages] == [(1, 1), (2, 2), (3, 3)]
    (picture,) = client.list_artifacts(found.info.run_id)
    (own,) = (tmp_path / "run" / "validation").iterdir()
    assert picture.path == own.name
    copies = [path.read_bytes() for path in (tmp_path / "run" / "mlruns").rglob(own.name)]
    assert copies == [own.read_bytes()]


def test_without_mlflow_its_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match=r"needs its package: pip install mlflow-skinny"):
        local_database(tmp_path / "run")
    assert not (tmp_path / "run").exists()
