"""The real configs, end to end, on tiny generated cases and a tiny network."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run
from monai.data import MetaTensor
from processes import run_python, start_python

from omnet_monai.datalist import read_cases, read_images
from omnet_monai.networks import OMNet
from omnet_monai.regions import SEQUENCES
from omnet_monai.results import read_scores
from omnet_monai.weights import ModelFile

BUNDLE = Path(__file__).parents[1] / "bundle"
TINY: dict[str, Any] = {
    "network_def#features": [4, 4, 8, 8],
    # A first side above 16 is trained on in bfloat16 where the CPU has it.
    "patch_size": [24, 16, 16],
    "steps_per_epoch": 2,
    "cases_per_step": 2,
    "patches_per_task": 1,
    "learning_rate": 0.01,
    "train#trainer#max_epochs": 3,
    "curriculum#milestones": [1 / 3, 2 / 3],
    "val_interval": 1,
}
IN_THREE_STAGES = ["1 of 3 tasks active (coarse)", "2 of 3 tasks active (coarse, refined)", "3 of 3 tasks active"]


def config(*names: str) -> list[str]:
    return [str(BUNDLE / "configs" / name) for name in names]


def where(folder: Path, phantoms: Path) -> dict[str, Any]:
    return {
        "bundle_root": str(BUNDLE),
        "meta_file": str(BUNDLE / "configs" / "metadata.json"),
        "logging_file": False,
        "dataset_dir": str(phantoms),
        "ckpt_dir": str(folder),
        "run_dir": str(folder / "run"),
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
    }


def command(folder: Path, phantoms: Path, files: list[str], **overrides: Any) -> list[str]:
    settings = {**where(folder, phantoms), **TINY, **overrides}
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return ["monai.bundle", "run", "--config_file", str(files), *flags]


@pytest.fixture(scope="module")
def trained(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run(config_file=config("train.json"), **where(folder, phantoms), **TINY, fold=0)
    return folder


def test_training_goes_through_three_stages_and_keeps_the_best_network_of_the_last(
    phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        run(config_file=config("train.json"), **where(tmp_path, phantoms), **TINY, fold=0)
    stages = [message for message in caplog.messages if "tasks active" in message]
    assert [expected in stage for expected, stage in zip(IN_THREE_STAGES, stages, strict=True)] == [True] * 3
    saved = [message for message in caplog.messages if "Best dice_mean" in message]
    assert len(saved) == 1  # three validations, the last alone with all tasks active
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert state["backbone.encoders.0.0.conv.weight"].dtype == torch.float16
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


def test_evaluation_scores_the_label_maps_it_saves(trained: Path, phantoms: Path, tmp_path: Path) -> None:
    settings = where(tmp_path, phantoms) | {"ckpt_dir": str(trained)}
    run(config_file=config("train.json", "evaluate.json"), **settings, **TINY)
    ((name, scores),) = read_scores(tmp_path / "out" / "scores.csv").items()
    assert name == "phantom_003"
    truth = nib.load(phantoms / "phantom_003" / "phantom_003_seg.nii.gz").get_fdata() > 0
    pred = nib.load(tmp_path / "out" / "phantom_003_seg.nii.gz").get_fdata() > 0
    dice = 2 * (truth & pred).sum() / (truth.sum() + pred.sum())
    assert scores["dice_WT"] == pytest.approx(dice, abs=1e-4)
    with open(tmp_path / "out" / "evaluations.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert re.fullmatch(r"phantom_003 [\d./]+; mean [\d./]+", line["scores"])
    for written in ("scores.json", "report.html", "pictures/phantom_003.png"):
        assert (tmp_path / "out" / written).is_file(), written


def test_evaluation_scores_refined_label_maps_where_the_steps_are_switched_on(phantoms: Path, tmp_path: Path) -> None:
    save_undecided(tmp_path / "model.pt", enhancing=9)
    files = config("train.json", "evaluate.json")
    switches = {"fill_core": True, "relabel_edema": True, "enhancing_volume": 1e9}
    run(config_file=files, **where(tmp_path, phantoms), **TINY, **switches)
    saved = nib.load(tmp_path / "out" / "phantom_003_seg.nii.gz").get_fdata()
    assert set(np.unique(saved)) == {0, 1, 2}


@pytest.mark.parametrize("workers", [0, 2], ids=["no workers", "two workers"])
def test_a_case_that_cannot_be_read_is_marked_and_the_others_are_scored(
    workers: int, trained: Path, phantoms: Path, tmp_path: Path
) -> None:
    settings = where(tmp_path, phantoms) | {"ckpt_dir": str(trained), "num_workers": workers}
    datalist = json.loads((phantoms / "datalist.json").read_text())
    broken, *others = (case | _absolute(case, phantoms) for case in datalist["training"])
    (tmp_path / "torn.nii.gz").write_bytes(b"torn")
    broken["image"] = [*broken["image"][:3], str(tmp_path / "torn.nii.gz")]
    (tmp_path / "list.json").write_text(json.dumps({"test": [broken, *others]}))
    files = config("train.json", "evaluate.json")
    with pytest.raises(RuntimeError, match="Failed to evaluate") as error:
        run(config_file=files, **settings, **TINY, datalist=str(tmp_path / "list.json"))
    assert f"cases not scored, see {tmp_path / 'out' / 'scores.csv'}: {broken['case']}" in _chain(error.value)
    assert sorted(read_scores(tmp_path / "out" / "scores.csv")) == [case["case"] for case in others]
    with open(tmp_path / "out" / "scores.csv", newline="") as file:
        errors = {row["case"]: row["error"] for row in csv.DictReader(file)}
    assert "torn.nii.gz: file must be readable" in errors[broken["case"]]
    with open(tmp_path / "out" / "evaluations.csv", newline="") as file:
        assert next(csv.DictReader(file))["scores"].startswith(f"{broken['case']} error; ")


def test_inference_writes_label_maps_on_the_grid_of_the_input(trained: Path, phantoms: Path, tmp_path: Path) -> None:
    settings = where(tmp_path, phantoms) | {"checkpoint_path": str(trained / "model.pt")}
    tiny = {key: TINY[key] for key in ("network_def#features", "patch_size")}
    run(config_file=config("inference.json"), workflow_type="infer", **settings, **tiny)
    saved = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in saved] == [f"phantom_{i:03}_seg.nii.gz" for i in range(4)]
    image = nib.load(phantoms / "phantom_000" / "phantom_000_t1.nii.gz")
    label = nib.load(saved[0])
    assert label.get_data_dtype() == np.uint8
    assert label.shape == image.shape
    np.testing.assert_allclose(label.affine, image.affine)
    assert set(np.unique(label.dataobj)) <= {0, 1, 2, 3}


def save_undecided(path: Path, enhancing: float) -> Path:
    """Save a network that sees tumor everywhere, is of two minds on the core, and has one logit for all it enhances."""
    torch.manual_seed(0)
    network = OMNet(class_counts=(4, 4, 2), features=TINY["network_def#features"])
    coarse, refined, precise = network.heads
    for final, weight, bias in (
        (coarse.final.conv, 0, [0.0, 0.0, 9.0, 0.0]),
        (refined.segmentation.final, 50, [0.0, 4.0, 4.0, 0.0]),
        (precise.segmentation.final, 0, [0.0, enhancing]),
    ):
        final.weight.data *= weight
        final.bias.data = torch.tensor(bias)
    ModelFile(path, network).save()
    return path


def segment(weights: Path, cases: Path, folder: Path, **switches: Any) -> np.ndarray:
    """Segment the first case by the real inference config."""
    settings = where(folder, cases) | {"checkpoint_path": str(weights)}
    tiny = {key: TINY[key] for key in ("network_def#features", "patch_size")}
    data = {"dataset#data": read_images(str(cases))[:1]}
    run(config_file=config("inference.json"), workflow_type="infer", **settings, **tiny, **data, **switches)
    return np.asarray(nib.load(folder / "out" / "phantom_000_seg.nii.gz").dataobj)


def test_each_refinement_changes_what_its_name_says(phantoms: Path, tmp_path: Path) -> None:
    weights = save_undecided(tmp_path / "model.pt", enhancing=-9)
    plain = segment(weights, phantoms, tmp_path / "plain", fill_core=False)
    assert set(np.unique(plain)) == {0, 1, 2}
    # A fifth is core, more than the limit that is documented.
    share = {"postprocessing#transforms#6#max_non_enhancing_share": 1.0}
    relabeled = {"fill_core": False, "relabel_edema": True, **share}
    for name, switches in (("filled", {"fill_core": True}), ("relabeled", relabeled)):
        refined = segment(weights, phantoms, tmp_path / name, **switches)
        changed = refined != plain
        assert changed.any(), name
        assert (plain[changed] == 2).all(), name
        assert (refined[changed] == 1).all(), name
    weights = save_undecided(tmp_path / "enhancing.pt", enhancing=9)
    enhancing = segment(weights, phantoms, tmp_path / "enhancing", fill_core=False)
    assert np.array_equal(enhancing, np.where(plain == 1, 3, plain))
    volume = float((enhancing == 3).sum())
    for name, limit, expected in (("equal", volume, enhancing), ("below", volume + 1, plain)):
        switches = {"fill_core": False, "enhancing_volume": limit}
        assert np.array_equal(segment(weights, phantoms, tmp_path / name, **switches), expected)


def test_an_image_smaller_than_a_window_is_segmented(trained: Path, phantoms: Path, tmp_path: Path) -> None:
    settings = where(tmp_path, phantoms) | {"checkpoint_path": str(trained / "model.pt")}
    tiny = {"network_def#features": TINY["network_def#features"], "patch_size": [64, 48, 16]}
    run(config_file=config("inference.json"), workflow_type="infer", **settings, **tiny)
    assert nib.load(tmp_path / "out" / "phantom_000_seg.nii.gz").shape == (40, 40, 32)


def test_other_axes_and_spacings_come_back_on_their_own_grid(trained: Path, phantoms: Path, tmp_path: Path) -> None:
    case = tmp_path / "cases" / "turned"
    case.mkdir(parents=True)
    for sequence in ("t1", "t1ce", "t2", "flair"):
        image = nib.load(phantoms / "phantom_000" / f"phantom_000_{sequence}.nii.gz")
        turned = nib.as_closest_canonical(image).get_fdata().transpose(2, 0, 1)[:, ::-1][:, :, ::2]
        affine = np.array([[0, -1, 0, 0], [0, 0, 2, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)
        nib.save(nib.Nifti1Image(turned.astype(np.int16), affine), case / f"turned_{sequence}.nii.gz")
    settings = where(tmp_path, case.parent) | {"checkpoint_path": str(trained / "model.pt")}
    tiny = {key: TINY[key] for key in ("network_def#features", "patch_size")}
    run(config_file=config("inference.json"), workflow_type="infer", **settings, **tiny)
    label = nib.load(tmp_path / "out" / "turned_seg.nii.gz")
    assert label.shape == (32, 40, 20)
    np.testing.assert_allclose(label.affine, affine)


def test_weights_of_another_network_are_named_and_nothing_is_written(
    trained: Path, phantoms: Path, tmp_path: Path
) -> None:
    settings = where(tmp_path, phantoms) | {"checkpoint_path": str(trained / "model.pt")}
    with pytest.raises(RuntimeError, match="Failed to evaluate") as error:  # MONAI's words around every error
        run(config_file=config("inference.json"), workflow_type="infer", **settings)
    assert "belong to another network: backbone.encoders.0.0.conv.weight has shape" in str(error.value.__cause__)
    assert not (tmp_path / "out").exists()


def test_given_weights_start_with_all_tasks(
    trained: Path, phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        weights = str(trained / "model.pt")
        run(config_file=config("train.json"), **where(tmp_path, phantoms), **TINY, weights=weights)
    assert [message for message in caplog.messages if "tasks active (" in message] == [
        "Curriculum: 3 of 3 tasks active (coarse, refined, precise), epoch 1."
    ]
    assert (tmp_path / "model.pt").is_file()  # without validation the last network is kept


@pytest.mark.parametrize("variant", ["few_steps", "no_attention", "se", "no_transfer", "no_curriculum"])
def test_variants_train_what_their_names_say(
    variant: str, phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {key: value for key, value in TINY.items() if key != "curriculum#milestones"}
    with caplog.at_level("INFO"):
        run(config_file=config("train.json", f"{variant}.json"), **where(tmp_path, phantoms), **settings)
    stages = [message for message in caplog.messages if "tasks active" in message]
    assert len(stages) == (1 if variant == "no_curriculum" else 3)
    names = torch.load(tmp_path / "model.pt", weights_only=True)
    assert any(".segmentation." in name for name in names) == (variant not in ("no_attention", "se"))
    assert any(".attention." in name for name in names) == (variant == "se")


def test_lesion_patches_are_trained_on_beside_whole_brains(
    phantoms: Path, lesion_patches: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files, beside = config("train.json", "lesions.json"), {"lesions_file": str(lesion_patches)}
    settings = where(tmp_path, phantoms) | TINY | beside
    parser = ConfigParser()
    parser.read_config(files)
    parser.update(settings | {"case_repeats": 2})
    dataset = parser.get_parsed_content("train#patches#dataset")
    assert len(dataset) == 2 * len(read_cases(phantoms / "datalist.json", "training")) + 2  # one patient is left out
    with caplog.at_level("INFO"):
        run(config_file=files, **settings)
    assert all(stage in caplog.text for stage in IN_THREE_STAGES)
    assert (tmp_path / "model.pt").exists()


@pytest.fixture(scope="module")
def stages(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Weights of the three networks of a cascade, each trained by itself with the real config."""
    folder = tmp_path_factory.mktemp("stages")
    for name in ("mc1", "refined", "precise"):
        run(config_file=config("train.json", f"{name}.json"), **where(folder / name, phantoms), **TINY, fold=0)
    return [str(folder / name / "model.pt") for name in ("mc1", "refined", "precise")]


def test_networks_of_one_task_train_and_validate_alone(stages: list[str]) -> None:
    for path, classes in zip(stages, (4, 4, 2), strict=True):
        state = torch.load(path, weights_only=True)
        assert {name.split(".")[1] for name in state if name.startswith("heads.")} == {"0"}
        assert len(state["heads.0.final.conv.bias"]) == classes


def test_a_run_of_another_task_optimizer_or_schedule_is_not_taken_up(
    stages: list[str], phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The coarse and the refined network have the same shapes.
    (tmp_path / "run").mkdir()
    old = torch.load(Path(stages[0]).parent / "run" / "checkpoint.pt", weights_only=True)
    torch.save(old | {"epoch": 1}, tmp_path / "run" / "checkpoint.pt")
    for name, other, taken_up in (
        ("refined", {}, False),
        ("mc1", {"optimizer#weight_decay": 0.1}, False),
        ("mc1", {"lr_scheduler#warmup_steps": 1}, False),
        ("mc1", {}, True),
    ):
        caplog.clear()
        with caplog.at_level("INFO"):
            files = config("train.json", f"{name}.json")
            run(config_file=files, **where(tmp_path, phantoms), **TINY, **other, fold=0)
        assert any("Resuming" in message for message in caplog.messages) == taken_up
        torch.save(old | {"epoch": 1}, tmp_path / "run" / "checkpoint.pt")


@pytest.mark.parametrize(("name", "count"), [("mc1", 1), ("mc2", 2), ("mc3", 3)], ids=str)
def test_a_cascade_is_scored_by_the_real_configs(
    name: str, count: int, stages: list[str], phantoms: Path, tmp_path: Path
) -> None:
    weights = {"checkpoint_path": stages[:count] if count > 1 else stages[0]}
    files = config("train.json", "evaluate.json", f"{name}.json")
    run(config_file=files, **where(tmp_path, phantoms), **TINY, **weights)
    assert list(read_scores(tmp_path / "out" / "scores.csv")) == ["phantom_003"]
    with open(tmp_path / "out" / "evaluations.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert len(line["weights_sha256"].split("; ")) == count


def test_a_cascade_segments_and_is_not_trained_as_one(stages: list[str], phantoms: Path, tmp_path: Path) -> None:
    tiny = {key: TINY[key] for key in ("network_def#features", "patch_size")}
    settings = where(tmp_path, phantoms) | {"checkpoint_path": stages}
    run(config_file=config("inference.json", "mc3.json"), workflow_type="infer", **settings, **tiny)
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 4
    with pytest.raises(RuntimeError) as error:
        run(config_file=config("train.json", "mc3.json"), **where(tmp_path, phantoms), **TINY)
    assert "must be trained one by one" in _chain(error.value)


def test_monai_label_trains_from_the_weights_it_loads(
    trained: Path, phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The overrides of its server: cases with image and label alone, its loader first, no validation cases."""
    cases = read_cases(phantoms / "datalist.json")
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": str(trained / "model.pt"),
        "load_dict": {"model": "@network"},
    }
    overrides = {
        "train#dataset#data": [{"image": case["image"], "label": case["label"]} for case in cases],
        "validate#dataset#data": [],
        "train#handlers": [loader, *json.loads((BUNDLE / "configs" / "train.json").read_text())["train"]["handlers"]],
        "device": "cpu",
    }
    (tmp_path / "run").mkdir()
    shutil.copy(trained / "run" / "checkpoint.pt", tmp_path / "run")  # an old run's, which must not be taken up
    with caplog.at_level("INFO"):
        run(config_file=config("train.json"), **where(tmp_path, phantoms), **TINY, **overrides)
    stages = [message for message in caplog.messages if "tasks active" in message]
    assert stages == ["Curriculum: 3 of 3 tasks active (coarse, refined, precise), epoch 1."]
    assert (tmp_path / "model.pt").is_file()


def test_fifty_steps_of_the_papers_recipe_run(phantoms: Path, tmp_path: Path) -> None:
    tiny = {"network_def#features": [4, 4, 8, 8], "steps_per_epoch": 50, "train#trainer#max_epochs": 1}
    small = {"patch_size": [8, 8, 8]}
    run(config_file=config("train.json", "paper.json"), **where(tmp_path, phantoms), **tiny, **small)
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state["network"].values())
    momentum = [entry["momentum_buffer"] for entry in state["optimizer"]["state"].values()]
    assert len(momentum) == len(list(OMNet(class_counts=(5, 5, 2), features=(2, 2, 2, 2)).parameters()))
    assert state["network"]["backbone.encoders.0.0.adn.N.num_batches_tracked"] == 50


def test_what_cannot_be_scored_is_named(trained: Path, phantoms: Path, tmp_path: Path) -> None:
    settings = where(tmp_path, phantoms) | {"ckpt_dir": str(trained)}
    datalist = json.loads((phantoms / "datalist.json").read_text())
    for case in datalist["test"]:
        del case["label"]
    (tmp_path / "unlabeled.json").write_text(json.dumps(datalist))
    (tmp_path / "empty.json").write_text(json.dumps(datalist | {"test": []}))
    files = config("train.json", "evaluate.json")
    for name, message in (("unlabeled", "must have a label, phantom_003"), ("empty", "'test' .* it is empty")):
        with pytest.raises(RuntimeError, match="Failed to evaluate") as error:
            run(config_file=files, **settings, **TINY, datalist=str(tmp_path / f"{name}.json"))
        assert re.search(message, _chain(error.value)), name


def test_a_held_out_fold_is_scored_alone(trained: Path, phantoms: Path, tmp_path: Path) -> None:
    settings = where(tmp_path, phantoms) | {"ckpt_dir": str(trained)}
    files = config("train.json", "evaluate.json")
    run(config_file=files, **settings, **TINY, fold=0, datalist_key="training")
    scored = list(read_scores(tmp_path / "out" / "scores.csv"))
    held_out = read_cases(phantoms / "datalist.json", fold=0, held_out=True)
    assert scored == [case["case"] for case in held_out]


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(("spacing", "size"), [(1.03, 20), (1.5, 30)], ids=["3 percent", "50 percent"])
def test_only_a_spacing_off_by_more_than_five_percent_is_resampled(axis: int, spacing: float, size: int) -> None:
    parser = ConfigParser()
    parser.read_config(config("inference.json"))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[axis, axis] *= spacing
    image = MetaTensor(torch.rand(4, 20, 20, 20) + 1, affine=torch.tensor(affine))
    data = {"image": image}
    for transform in parser.get_parsed_content("preprocessing").transforms[1:]:
        data = transform(data)
    assert abs(data["image"].shape[axis + 1] - size) <= 1  # resampling may round by a voxel
    assert [n for k, n in enumerate(data["image"].shape[1:]) if k != axis] == [20, 20]


@pytest.mark.parametrize("workers", [0, 2], ids=["no workers", "two workers"])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    workers: int, phantoms: Path, tmp_path: Path
) -> None:
    _compare_killed_with_uninterrupted(workers, kills=1, phantoms=phantoms, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2], ids=["no workers", "two workers"])
def test_ten_kills_at_random_times_change_no_bit(workers: int, phantoms: Path, tmp_path: Path) -> None:
    _compare_killed_with_uninterrupted(workers, kills=10, phantoms=phantoms, folder=tmp_path)


def _compare_killed_with_uninterrupted(workers: int, kills: int, phantoms: Path, folder: Path) -> None:
    length: dict[str, Any] = {"train#trainer#max_epochs": 12, "num_workers": workers, "steps_per_epoch": 3}
    length |= {"logging_file": str(BUNDLE / "configs" / "logging.conf")}  # which shows where a run is taken up

    def words(name: str) -> list[str]:
        return command(folder / name, phantoms, config("train.json"), **length)

    began = time.monotonic()
    assert run_python(words("whole"), folder).returncode == 0
    span = time.monotonic() - began
    draw, done = random.Random(workers), 0
    while done < kills:
        name = f"killed{done}"
        process = start_python(words(name), folder, Path(os.devnull), Path(os.devnull))
        moment = draw.uniform(0.1, 1) * span
        process.join(moment)
        interrupted = process.exitcode is None
        if interrupted:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            checkpoint = folder / name / "run" / "checkpoint.pt"
            epoch = torch.load(checkpoint, weights_only=True)["epoch"] if checkpoint.exists() else 0
            again = run_python(words(name), folder)
            log = again.stdout + again.stderr
            assert again.returncode == 0, log
            assert (f"Resuming after epoch {epoch} of 12" in log) == (0 < epoch < 12)
            for file in ("model.pt", "run/checkpoint.pt"):
                expected, got = (torch.load(folder / n / file, weights_only=True) for n in ("whole", name))
                assert _equal(expected, got), f"{file} after a kill at {moment:.1f} s"
            print(f"{workers} workers, killed after {moment:.1f} s in epoch {epoch + 1} of 12: equal bit for bit")
            done += 1
        shutil.rmtree(folder / name, ignore_errors=True)


def _absolute(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {"image": [str(folder / file) for file in case["image"]], "label": str(folder / case["label"])}


def _chain(error: BaseException | None) -> str:
    return "" if error is None else f"{error}\n{_chain(error.__cause__ or error.__context__)}"


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(_equal, a, b)) if isinstance(a, (list, tuple)) else a == b


def test_the_input_has_as_many_channels_as_there_are_sequences() -> None:
    parser = ConfigParser()
    parser.read_config(config("train.json"))
    assert parser["network_def"]["in_channels"] == len(SEQUENCES)
