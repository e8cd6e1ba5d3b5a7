"""Files of weights, checkpoints, and a tiny real training that is interrupted and taken up again."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import Evaluator, SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointLoader, IgniteMetricHandler, LrScheduleHandler, from_engine
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.metrics import DiceMetric
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import Compose
from torch import nn

from omnet_monai.augmentation import BatchAugmentation
from omnet_monai.checkpoint import RunCheckpoint, SaveCheckpoint
from omnet_monai.curriculum import Curriculum, CurriculumHandler, PrepareTaskBatch
from omnet_monai.inferers import AutocastInferer
from omnet_monai.losses import OMNetLoss
from omnet_monai.networks import OMNet
from omnet_monai.regions import EDEMA, ENHANCING, NECROSIS
from omnet_monai.report import CaseTable
from omnet_monai.sampling import EpochDataset, EpochSampler, EpochSeedHandler
from omnet_monai.transforms import LabelsToRegionsd, RandCropByTaskd, RegionsToLabelsd
from omnet_monai.validation import ValidationToTheEnd
from omnet_monai.weights import ModelFile, SaveBest, SaveLast, StrictCheckpointLoader, load_weights

# Two workers are meant, also where there is one core.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")


def make_network(features: int = 2, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(1, features, 3), nn.BatchNorm3d(features))


def copy_state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def same(first: Any, second: Any) -> bool:
    """Compare nested dictionaries and lists with tensors, bit by bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def rename(state: dict[str, Any]) -> dict[str, Any]:
    state["0.kernel"] = state.pop("0.weight")
    return state


def with_one(number: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        state["1.running_var"][1] = number
        return state

    return change


def of_another_width(state: dict[str, Any]) -> dict[str, Any]:
    return make_network(features=3).state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, r"another network: 0\.weight missing; 0\.kernel unknown$"),
        (
            of_another_width,
            r"another network: 0\.weight has shape \(3, 1, 3, 3, 3\), needs \(2, 1, 3, 3, 3\); 0\.bias .*; and 1 more$",
        ),
        (
            lambda state: {"module." + key: value for key, value in state.items()},
            r"0\.weight missing; module\.0\.weight unknown; .*; and 9 more$",
        ),
        (lambda state: {}, r"0\.weight missing; .*; and 2 more$"),
        (with_one(math.nan), r"must be finite, got NaN or infinity in 1\.running_var$"),
        (with_one(-math.inf), r"must be finite, got NaN or infinity in 1\.running_var$"),
        (lambda state: {"model": state}, "must hold a bare state dict, got dict of other things"),
        (lambda state: [1, 2], "must hold a bare state dict, got list of other things"),
        (lambda state: Path("pickled"), "must be a state dict that torch.load reads"),
    ],
    ids=["renamed", "other width", "prefixed", "empty", "NaN", "infinite", "nested", "list", "pickled object"],
)
def test_weights_of_another_network_or_of_none_are_refused_with_what_differs(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    network = make_network()
    torch.save(change(make_network(seed=1).state_dict()), tmp_path / "model.pt")
    before = copy_state(network)
    with pytest.raises(ValueError, match=message) as error:
        load_weights(network, tmp_path / "model.pt")
    assert f"weights {tmp_path / 'model.pt'} " in str(error.value)
    assert same(before, network.state_dict())


def test_the_network_of_an_interrupted_run_is_read_from_its_checkpoint(tmp_path: Path) -> None:
    trained, network = make_network(seed=1), make_network()
    RunCheckpoint(tmp_path / "checkpoint.pt", {"network": trained, "curriculum": Curriculum()}, []).save(3)
    load_weights(network, tmp_path / "checkpoint.pt")
    assert same(copy_state(trained), network.state_dict())


def test_weights_that_torch_does_not_read_are_refused_in_one_line_without_its_advice(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_text("version https://git-lfs.github.com/spec/v1\n")  # a clone without Git LFS
    with pytest.raises(ValueError, match=r"torch\.load reads, got UnpicklingError Weights only load failed$"):
        load_weights(make_network(), tmp_path / "model.pt")


@pytest.mark.parametrize("kept", [0, 100, 1500], ids=["nothing", "a beginning", "most of it"])
def test_a_file_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    path, network = tmp_path / "model.pt", make_network()
    torch.save(make_network(seed=1).state_dict(), path)
    assert path.stat().st_size > 1500
    path.write_bytes(path.read_bytes()[:kept])
    before = copy_state(network)
    with pytest.raises(ValueError, match=r"model\.pt must be a state dict that torch\.load reads, got "):
        load_weights(network, path)
    assert same(before, network.state_dict())


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "model.pt", tmp_path):
        with pytest.raises(ValueError, match=r"weights must be a file, got .*"):
            load_weights(make_network(), path)


def test_the_model_file_holds_convolutions_in_half_and_the_rest_in_full_precision(tmp_path: Path) -> None:
    network = make_network()
    network.train()(torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)))
    ModelFile(tmp_path / "models" / "model.pt", network).save()
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert {key: value.dtype for key, value in state.items()} == {
        "0.weight": torch.float16,
        "0.bias": torch.float32,
        "1.weight": torch.float32,
        "1.bias": torch.float32,
        "1.running_mean": torch.float32,
        "1.running_var": torch.float32,
        "1.num_batches_tracked": torch.int64,
    }
    assert network[0].weight.dtype == torch.float32
    other = make_network(seed=1)
    load_weights(other, tmp_path / "models" / "model.pt")
    expected = copy_state(network)
    expected["0.weight"] = expected["0.weight"].half().float()
    assert same(expected, other.state_dict())


def test_weights_are_loaded_when_an_engine_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "omnet_monai")
    torch.save(make_network(seed=1).state_dict(), tmp_path / "model.pt")
    network = make_network()
    engine = Engine(lambda engine, batch: None)
    StrictCheckpointLoader(tmp_path / "model.pt", network).attach(engine)
    assert same(make_network().state_dict(), network.state_dict())
    engine.run([0])
    assert same(make_network(seed=1).state_dict(), network.state_dict())
    assert caplog.messages == [f"Weights loaded from {tmp_path / 'model.pt'}."]
    assert engine.state.weights == [tmp_path / "model.pt"]


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    idist.initialize("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    idist.finalize()


@pytest.mark.usefixtures("process_group")
def test_weights_of_a_distributed_network_have_the_names_of_the_network_itself(tmp_path: Path) -> None:
    network = nn.parallel.DistributedDataParallel(make_network())
    ModelFile(tmp_path / "model.pt", network).save()
    assert list(torch.load(tmp_path / "model.pt", weights_only=True)) == list(make_network().state_dict())
    run = RunCheckpoint(tmp_path / "checkpoint.pt", {"network": network}, [])
    run.save(1)
    alone = RunCheckpoint(tmp_path / "checkpoint.pt", {"network": make_network(seed=1)}, [])
    alone.start(make_trainer())
    assert same(alone.parts["network"].state_dict(), network.module.state_dict())
    torch.save(make_network(seed=2).state_dict(), tmp_path / "model.pt")
    load_weights(network, tmp_path / "model.pt")
    assert same(make_network(seed=2).state_dict(), network.module.state_dict())


def test_a_process_that_would_start_elsewhere_than_the_first_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idist, "broadcast", lambda value, src: 5.0)  # the first process found a checkpoint, this none
    run = RunCheckpoint(tmp_path / "checkpoint.pt", {"network": make_network(), "curriculum": Curriculum()}, [])
    with pytest.raises(
        ValueError, match=r"start after the same epoch, the first one after 5, got 0 by .*checkpoint\.pt"
    ):
        run.start(make_trainer())


def validate(model_file: ModelFile, curriculum: Curriculum, value: float) -> bool:
    """Run an evaluator that finds a value, and tell whether the network was saved."""
    model_file.path.unlink(missing_ok=True)
    evaluator = Engine(lambda engine, batch: None)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.update(dice=value))
    SaveBest(model_file, curriculum, "dice").attach(evaluator)
    evaluator.run([0])
    return model_file.path.is_file()


def test_the_best_network_is_saved_only_while_all_tasks_are_active(tmp_path: Path) -> None:
    model_file, curriculum = ModelFile(tmp_path / "model.pt", make_network()), Curriculum([0.1, 0.2])
    for num_tasks in (1, 2):
        curriculum.num_tasks = num_tasks
        assert not validate(model_file, curriculum, 0.9)
    assert model_file.best_metric == -np.inf
    curriculum.num_tasks = 3
    values = [0.0, 0.5, 0.4, 0.5, float("nan"), 0.6]
    assert [validate(model_file, curriculum, value) for value in values] == [True, True, False, False, False, True]
    assert model_file.best_metric == 0.6


@pytest.mark.parametrize(
    ("best", "saved"), [(-np.inf, True), (0.0, False), (0.7, False)], ids=["none", "a best of 0", "a best"]
)
def test_the_last_network_is_saved_unless_a_validation_chose_one(tmp_path: Path, best: float, saved: bool) -> None:
    model_file = ModelFile(tmp_path / "model.pt", make_network())
    model_file.best_metric = best
    trainer = Engine(lambda engine, batch: None)
    SaveLast(model_file).attach(trainer)
    trainer.add_event_handler(
        Events.EPOCH_STARTED(once=2), lambda: list(tmp_path.iterdir()) and pytest.fail("too early")
    )
    trainer.run([0], max_epochs=2)
    assert model_file.path.is_file() == saved


def make_trainer(max_epochs: int = 4) -> Engine:
    """Make a trainer as MONAI's engines are before they run: it knows its epochs of five steps."""
    trainer = Engine(lambda engine, batch: None)
    trainer.state.max_epochs, trainer.state.epoch_length = max_epochs, 5
    return trainer


def make_run(
    folder: Path, seed: int = 0, features: int = 2, data: str = "a", max_epochs: int = 4, trained: int = 0
) -> SimpleNamespace:
    """Make what a run is made of, and train it for some steps."""
    network = make_network(features, seed)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    scheduler = WarmupCosineSchedule(optimizer, warmup_steps=2, t_total=20)
    curriculum, model_file = Curriculum([0.25, 0.5], patience=3), ModelFile(folder / "model.pt", network)
    generator = torch.Generator().manual_seed(seed)
    for step in range(trained):
        optimizer.zero_grad()
        network(torch.randn(2, 1, 4, 4, 4, generator=generator)).pow(3).mean().backward()
        optimizer.step()
        scheduler.step()
        curriculum.num_tasks, curriculum.best_loss, curriculum.stale_epochs = 2, 0.5, 1
        model_file.best_metric = step / 10
    parts = {
        "network": network,
        "optimizer": optimizer,
        "lr_scheduler": scheduler,
        "curriculum": curriculum,
        "model_file": model_file,
    }
    saved = RunCheckpoint(folder / "checkpoint.pt", parts, [[{"case": data, "image": [data]}], max_epochs])
    return SimpleNamespace(parts=parts, network=network, checkpoint=saved, trainer=make_trainer(max_epochs))


def states(run: SimpleNamespace) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in run.parts.items()}


def test_a_resumed_run_goes_on_with_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "omnet_monai")
    old = make_run(tmp_path, trained=3)
    old.checkpoint.save(2)
    assert list(tmp_path.iterdir()) == [tmp_path / "checkpoint.pt"]
    assert set(torch.load(tmp_path / "checkpoint.pt", weights_only=True)) == {
        "identity",
        "epoch",
        "finished",
        *old.parts,
    }
    new = make_run(tmp_path, seed=1)
    new.checkpoint.start(new.trainer, [], weights=str(tmp_path / "not looked at"))
    assert same(states(old), states(new))
    assert (new.trainer.state.epoch, new.trainer.state.iteration) == (2, 10)
    assert caplog.messages == [f"Resuming after epoch 2 of 4 from {tmp_path / 'checkpoint.pt'}."]
    # By hand: momentum of three steps, the warmed-up rate after three of twenty, the rest as make_run sets it.
    assert all(entry["momentum_buffer"].any() for entry in new.parts["optimizer"].state.values())
    rate = 0.1 * 0.5 * (1 + np.cos(np.pi * (3 - 2) / (20 - 2)))
    assert new.parts["optimizer"].param_groups[0]["lr"] == pytest.approx(rate)
    assert new.parts["curriculum"].staged
    assert new.parts["curriculum"].state_dict() == {"num_tasks": 2, "best_loss": 0.5, "stale_epochs": 1}
    assert new.parts["model_file"].best_metric == 0.2


@pytest.mark.parametrize(
    ("epoch", "change", "brings_weights"),
    [
        (None, {}, False),
        (4, {}, False),
        (2, {"data": "b"}, False),
        (2, {"max_epochs": 5}, False),
        (2, {"max_epochs": 3}, False),
        (2, {"features": 3}, False),
        (2, {}, True),
    ],
    ids=["nothing saved", "finished", "other data", "more epochs", "fewer epochs", "other network", "given weights"],
)
@pytest.mark.parametrize("given", [False, True], ids=["fresh", "from weights"])
def test_another_run_is_not_taken_up_and_weights_are_loaded_instead(
    tmp_path: Path, epoch: int | None, change: dict[str, Any], brings_weights: bool, given: bool
) -> None:
    if epoch is not None:
        make_run(tmp_path, trained=3).checkpoint.save(epoch)
    new = make_run(tmp_path, seed=1, **change)
    fresh = make_run(tmp_path, seed=1, **change)
    start = make_network(change.get("features", 2), seed=2)
    torch.save(start.state_dict(), tmp_path / "start.pt")
    handlers = [CheckpointLoader(str(tmp_path / "start.pt"), {"model": new.network})] if brings_weights else []
    new.checkpoint.start(new.trainer, handlers, str(tmp_path / "start.pt") if given else None)
    assert same((start if given else fresh.network).state_dict(), new.network.state_dict())
    assert (new.trainer.state.epoch, new.trainer.state.iteration) == (0, 0)
    assert new.parts["curriculum"].staged == (not given and not brings_weights)
    assert new.parts["model_file"].best_metric == -np.inf
    assert same(states(fresh)["optimizer"], states(new)["optimizer"])


@pytest.mark.parametrize(
    ("change", "finished", "kept"),
    [({"data": "b"}, False, True), ({"data": "b"}, True, False), ({}, False, False)],
    ids=["other data", "other data, finished", "the same run"],
)
def test_an_unfinished_run_of_other_settings_keeps_its_checkpoint_under_another_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], finished: bool, kept: bool
) -> None:
    make_run(tmp_path, trained=3).checkpoint.save(2, finished)
    written = (tmp_path / "checkpoint.pt").read_bytes()
    new = make_run(tmp_path, **change)
    new.checkpoint.start(new.trainer)
    new.checkpoint.save(1)
    other = tmp_path / "checkpoint_epoch2.pt"
    assert other.is_file() == kept
    if kept:
        assert other.read_bytes() == written
        said = "was of a run with other settings, after its epoch 2: renamed to checkpoint_epoch2.pt."
        assert caplog.messages == [f"{tmp_path / 'checkpoint.pt'} {said}"]


def test_no_checkpoint_is_renamed_over_another(tmp_path: Path) -> None:
    written = []
    for data in "abc":
        run = make_run(tmp_path, data=data, trained=len(written))
        run.checkpoint.start(run.trainer)
        run.checkpoint.save(2)
        written.append((tmp_path / "checkpoint.pt").read_bytes())
    kept = [tmp_path / name for name in ("checkpoint_epoch2.pt", "checkpoint_epoch2_2.pt", "checkpoint.pt")]
    assert [file.read_bytes() for file in kept] == written
    assert len(set(written)) == 3


def test_a_layer_with_other_settings_makes_another_run(tmp_path: Path) -> None:
    plain, slow = (nn.Sequential(nn.BatchNorm3d(2, momentum=momentum)) for momentum in (0.1, 0.01))
    runs = [RunCheckpoint(tmp_path / "checkpoint.pt", {"network": network}, []) for network in (plain, slow, plain)]
    assert runs[0].identity == runs[2].identity != runs[1].identity


def test_starting_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    new = make_run(tmp_path)
    with pytest.raises(ValueError, match="weights must be a file"):
        new.checkpoint.start(new.trainer, [], str(tmp_path / "model.pt"))


def test_a_checkpoint_is_written_at_the_end_of_each_epoch(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    epochs: list[int] = []
    SaveCheckpoint(run.checkpoint).attach(run.trainer)
    run.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: epochs.append(torch.load(run.checkpoint.path, weights_only=True)["epoch"])
    )
    run.trainer.run([0] * 5)
    assert epochs == [1, 2, 3, 4]
    assert torch.load(run.checkpoint.path, weights_only=True)["finished"]


def test_a_run_whose_last_weights_could_not_be_written_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train() -> SimpleNamespace:
        run = make_run(tmp_path)
        run.checkpoint.start(run.trainer)
        # In the order of train.json.
        SaveLast(run.parts["model_file"]).attach(run.trainer)
        SaveCheckpoint(run.checkpoint).attach(run.trainer)
        run.started_after = run.trainer.state.epoch
        run.trainer.run([0] * 5)
        return run

    with monkeypatch.context() as full:
        full.setattr(ModelFile, "save", Mock(side_effect=OSError("disk is full")))
        with pytest.raises(OSError, match="disk is full"):
            train()
    again = train()
    assert again.started_after == 3
    assert again.parts["model_file"].path.is_file()


@pytest.mark.parametrize(
    ("max_epochs", "expected"), [(6, [2, 4, 6]), (5, [2, 4, 5]), (1, [1])], ids=["a multiple", "none", "shorter"]
)
def test_the_last_epoch_is_validated_once_whatever_the_interval(max_epochs: int, expected: list[int]) -> None:
    evaluator = Evaluator(torch.device("cpu"), [0])
    validated: list[int] = []
    evaluator.run = validated.append  # the trainer's epoch
    trainer = Engine(lambda engine, batch: None)
    ValidationToTheEnd(evaluator, interval=2).attach(trainer)
    trainer.run([0], max_epochs=max_epochs)
    assert validated == expected


def test_validation_every_0_epochs_is_refused_before_the_first_one_is_trained() -> None:
    with pytest.raises(ValueError, match="interval must be at least one epoch, got 0"):
        ValidationToTheEnd(Evaluator(torch.device("cpu"), [0]), interval=0)


def make_cases() -> list[dict[str, Any]]:
    """Make three cases with noise for an image and nested boxes for a tumor; the last has no core."""
    cases = []
    for number in range(3):
        rng = np.random.default_rng(number)
        label = np.zeros((1, 16, 20, 9), np.uint8)
        label[:, 3:14, 4:16, 2:8] = EDEMA
        if number < 2:
            label[:, 5:12, 6:13, 3:7] = NECROSIS
            label[:, 7:10, 7:12, 4:6] = ENHANCING
        image = (rng.normal(0, 1, (4, 16, 20, 9)) + label).astype(np.float32)
        meta = {"case": f"p{number}"}
        cases.append({"image": MetaTensor(image, meta=meta), "label": MetaTensor(label, meta=meta)})
    return cases


# A first side above 16 is trained on in bfloat16 where the CPU has it.
EPOCHS, STEPS, CASES_PER_STEP, SIZE = 4, 2, 2, (24, 16, 8)


def make_training(folder: Path, num_workers: int, seed: int) -> SimpleNamespace:
    """Wire a training as train.json does, of a tiny network with weights of a seed."""
    torch.manual_seed(seed)
    device, cases = torch.device("cpu"), make_cases()
    network = OMNet(class_counts=(4, 4, 2), features=(4, 8, 8, 8))
    loss_function, curriculum = OMNetLoss(), Curriculum([0.25, 0.5])
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.01, fused=True)
    scheduler = WarmupCosineSchedule(optimizer, warmup_steps=2, t_total=EPOCHS * STEPS)
    model_file = ModelFile(folder / "model.pt", network)
    parts = {
        "network": network,
        "optimizer": optimizer,
        "lr_scheduler": scheduler,
        "curriculum": curriculum,
        "model_file": model_file,
    }
    saved = RunCheckpoint(folder / "checkpoint.pt", parts, [["p0", "p1", "p2"], EPOCHS])
    evaluator = SupervisedEvaluator(
        device=device,
        val_data_loader=DataLoader(Dataset(cases[:1]), batch_size=1, num_workers=num_workers),
        network=network,
        inferer=AutocastInferer(SlidingWindowInferer(SIZE, sw_batch_size=4, overlap=0.25, mode="gaussian")),
        postprocessing=Compose([RegionsToLabelsd("pred"), LabelsToRegionsd(["pred", "label"])]),
        key_val_metric={
            "dice_mean": IgniteMetricHandler(
                metric_fn=DiceMetric(include_background=True, reduction="mean", ignore_empty=False),
                output_transform=from_engine(["pred", "label"]),
            )
        },
        val_handlers=[CaseTable(), SaveBest(model_file, curriculum, "dice_mean")],
    )
    patches = EpochDataset(cases, [RandCropByTaskd(SIZE, num_samples=1, margin=0.17)], STEPS * CASES_PER_STEP)
    sampler = EpochSampler(patches)
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=EPOCHS,
        train_data_loader=DataLoader(
            patches,
            batch_size=CASES_PER_STEP,
            sampler=sampler,
            generator=torch.Generator(),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        ),
        network=network,
        optimizer=optimizer,
        loss_function=loss_function,
        inferer=AutocastInferer(SimpleInferer()),
        prepare_batch=PrepareTaskBatch(curriculum, BatchAugmentation(SIZE, 0.5, 0.3, 0.2, scale=0.25, shift=0.3)),
        train_handlers=[
            EpochSeedHandler(sampler),
            CurriculumHandler(curriculum, loss_function),
            LrScheduleHandler(scheduler, print_lr=False, epoch_level=False),
            ValidationToTheEnd(evaluator, interval=1),
            SaveLast(model_file),
            SaveCheckpoint(saved),
        ],
    )
    losses: dict[int, float] = {}
    stages: dict[int, int] = {}

    def note(engine: Engine) -> None:
        losses[engine.state.iteration] = float(engine.state.output[0]["loss"])
        stages[engine.state.epoch] = curriculum.num_tasks

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    return SimpleNamespace(parts=parts, trainer=trainer, checkpoint=saved, losses=losses, stages=stages)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Train without workers and interruption."""
    run = make_training(tmp_path_factory.mktemp("straight"), num_workers=0, seed=0)
    run.checkpoint.start(run.trainer, [], None)
    run.trainer.run()
    return run


def test_a_tiny_training_goes_through_all_stages_and_trains_each_head_from_its_own_on(
    straight: SimpleNamespace,
) -> None:
    assert straight.stages == {1: 1, 2: 2, 3: 3, 4: 3}
    assert list(straight.losses) == list(range(1, 1 + EPOCHS * STEPS))
    assert np.isfinite(list(straight.losses.values())).all()
    assert straight.parts["model_file"].best_metric > 0
    steps = {
        name: int(straight.parts["optimizer"].state[parameter]["step"])
        for name, parameter in straight.parts["network"].named_parameters()
        if name.startswith("heads") and parameter in straight.parts["optimizer"].state
    }
    for head, expected in enumerate([8, 6, 4]):
        assert {count for name, count in steps.items() if name.startswith(f"heads.{head}.")} == {expected}


@pytest.mark.parametrize(
    ("num_workers", "done"), [(0, 1), (0, 3), (2, 2)], ids=["0 workers, epoch 1", "0 workers, epoch 3", "2 workers"]
)
def test_an_interrupted_and_resumed_training_equals_an_uninterrupted_one_bit_by_bit(
    tmp_path: Path, straight: SimpleNamespace, num_workers: int, done: int
) -> None:
    first = make_training(tmp_path, num_workers, seed=0)

    def interrupt(engine: Engine) -> None:
        if engine.state.iteration == done * STEPS + 1:  # in the middle of the next epoch
            raise KeyboardInterrupt("pulled the plug")

    first.trainer.add_event_handler(Events.ITERATION_COMPLETED, interrupt)
    first.checkpoint.start(first.trainer, [], None)
    with pytest.raises(KeyboardInterrupt, match="pulled the plug"):
        first.trainer.run()
    assert not same(states(straight), states(first))

    second = make_training(tmp_path, num_workers, seed=1)
    second.checkpoint.start(second.trainer, [], None)
    assert second.trainer.state.epoch == done
    second.trainer.run()
    assert same(states(straight), states(second))
    assert first.losses | second.losses == straight.losses
    assert list(second.losses) == list(range(done * STEPS + 1, EPOCHS * STEPS + 1))
    models = [torch.load(run.parts["model_file"].path, weights_only=True) for run in (straight, second)]
    assert same(*models)
