"""The race against other networks: each trains by its own recipe for the same time, and is scored alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

TINY: dict[str, Any] = {"network_def#features": [2, 2, 4, 4], "patch_size": [24, 16, 16]}
SMALL: dict[str, Any] = {"network_def#init_filters": 8, "crop_size": [16, 16, 16]}


@pytest.fixture
def race(load_script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with small networks of its entrants."""
    module = load_script("race")
    small = {"omnet": TINY, "mc3": TINY, "segresnet": SMALL}
    entrants = {
        name: replace(module.ENTRANTS[name], trials=({**own, "pictures": False},)) for name, own in small.items()
    }
    entrants["segresnet"] = replace(entrants["segresnet"], trials=(SMALL, {**SMALL, "learning_rate": 0.01}))
    monkeypatch.setattr(module, "ENTRANTS", entrants)
    return module


def test_every_entrant_trains_as_long_and_the_better_trial_races(
    race: ModuleType, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"minutes": 0.005, "folds": 1, "trials": 2, "entrants": ("omnet", "segresnet")}
    race.main(str(tmp_path), str(phantoms / "datalist.json"), **arguments)
    results = {file.parent.name: json.loads(file.read_text()) for file in tmp_path.glob("*/result.json")}
    for result in results.values():
        assert set(result) == {"steps", "minutes", "dice", "machine"}
        assert result["steps"] >= 1
        assert result["minutes"] >= 0.005
    assert set(results) == {
        f"{name}-fold1-0.005min-trial{trial}-seed0"
        for name, trial in (("omnet", 0), ("segresnet", 0), ("segresnet", 1))
    }
    chosen = {name: json.loads((tmp_path / f"{name}-choice.json").read_text()) for name in ("omnet", "segresnet")}
    assert chosen["omnet"]["trial"] == 0
    runs = [results[f"segresnet-fold1-0.005min-trial{trial}-seed0"] for trial in (0, 1)]
    means = [np.mean(list(run["dice"].values())) for run in runs]
    assert means == pytest.approx(chosen["segresnet"]["means"])
    assert means[chosen["segresnet"]["trial"]] == max(means)
    table = (tmp_path / "race.md").read_text()
    assert table in capsys.readouterr().out
    assert [line.split(" | ")[0] for line in table.splitlines()[2:4]] == ["| OM-Net+CGA", "| SegResNet"]

    # A second call has nothing left to run.
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("model.pt")}
    race.main(str(tmp_path), str(phantoms / "datalist.json"), **arguments)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("model.pt")} == before

    # Nor is it gone on with by other cases, even if a network was trained but not scored.
    next(tmp_path.glob("omnet-*/result.json")).unlink()
    other = json.loads((phantoms / "datalist.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps({**other, "name": "other"}))
    with pytest.raises(ValueError, match=r"same settings to be continued, differs in datalist_sha256"):
        race.main(str(tmp_path), str(tmp_path / "other.json"), **arguments)


def test_the_networks_of_a_cascade_share_the_time(
    race: ModuleType, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, float, float]] = []
    scored: list[dict[str, Any]] = []

    def train_once(folder: Path, epochs: int, config_file: Any, settings: Any) -> float:
        trained.append((folder.name, settings["seconds"], settings["warmup"]))
        (folder / "run").mkdir(parents=True)
        torch.save({"lr_scheduler": {"last_epoch": 7}}, folder / "run" / "checkpoint.pt")
        return 21.0

    def run(output_dir: str, **settings: Any) -> None:
        Path(output_dir).mkdir(parents=True)
        scored.append({name: settings[name] for name in race.UNREFINED})

    monkeypatch.setattr(race, "train_once", train_once)
    monkeypatch.setattr(race, "run", run)
    monkeypatch.setattr(race, "read_dice", lambda path: {"a": [0.5, 0.5, 0.5]})
    race.main(str(tmp_path), str(phantoms / "datalist.json"), minutes=1, entrants=["omnet", "mc3"])
    assert scored == [race.UNREFINED] * 2  # without what was chosen on the cases of the folds
    assert trained == [
        ("network0", 60, 1 / 70),
        ("network0", 20, 1 / 70),
        ("network1", 20, 1 / 70),
        ("network2", 20, 1 / 70),
    ]
    rows = [line.split(" | ") for line in (tmp_path / "race.md").read_text().splitlines()[2:4]]
    assert [row[:3] for row in rows] == [["| OM-Net+CGA", "7", "0.3"], ["| MC3", "21", "1.1"]]  # minutes: 0.35, 1.05


def test_two_scans_of_a_patient_count_as_one_in_the_error_of_a_difference(race: ModuleType) -> None:
    def run(*dice: float) -> list[dict[str, Any]]:
        return [{"steps": 1, "minutes": 1, "dice": {case: [d] * 3 for case, d in zip("abcd", dice, strict=True)}}]

    def error(patients: dict[str, str]) -> str:
        table = race._table({"omnet": run(0.5, 0.5, 0.5, 0.5), "mc3": run(0.6, 0.6, 0.8, 0.8)}, patients)
        return table.splitlines()[3].split(" | ")[-1]

    # Differences 0.1, 0.1, 0.3, 0.3: of four patients a deviation of 0.1155 by sqrt(4), of two 0.1414 by sqrt(2).
    assert error({}) == "0.058 |"
    assert error({"a": "p", "b": "p", "c": "q", "d": "q"}) == "0.100 |"


def test_nnunet_finds_each_fold_at_its_number_and_trains_on_cases_without_one(race: ModuleType) -> None:
    cases: list[dict[str, Any]] = [{"case": "a", "fold": 1}, {"case": "b", "fold": 2}, {"case": "c", "fold": None}]
    _, first, second = race.nnunet._splits(cases)
    assert first == {"train": ["b", "c"], "val": ["a"]}
    assert second == {"train": ["a", "c"], "val": ["b"]}
    assert race.nnunet._splits([{"case": "c"}]) == []


@pytest.mark.parametrize("within", [True, False], ids=["in the result", "beside it"])
def test_a_result_is_read_by_the_settings_it_was_made_with_alone(
    race: ModuleType, phantoms: Path, tmp_path: Path, within: bool
) -> None:
    here = race.Race(tmp_path, phantoms / "datalist.json", 1, 0, {})
    folder = tmp_path / "omnet-test-1min-trial0-seed0"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"steps": 7, **({"settings": here.settings} if within else {})}))
    if not within:
        (folder / "settings.json").write_text(json.dumps(here.settings))
    assert here.result("omnet", None, 0)["steps"] == 7
    other = race.Race(tmp_path, phantoms / "datalist.json", 1, 0, {"num_workers": 1})
    with pytest.raises(ValueError, match="same settings to be continued, differs in overrides"):
        other.result("omnet", None, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"entrants": "unet"}, "entrants must be some of omnet, mc3, segresnet, got unet"),
        ({"folds": 7}, "fold must be one of 0, 1, 2 in training of .*, got 7"),
    ],
    ids=["entrant", "fold"],
)
def test_bad_names_are_refused_before_anything_runs(
    race: ModuleType, arguments: dict[str, Any], message: str, phantoms: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        race.main(str(tmp_path / "out"), str(phantoms / "datalist.json"), **arguments)
    assert not (tmp_path / "out").exists()
