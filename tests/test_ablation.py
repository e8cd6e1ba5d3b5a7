"""The ablation, end to end by the real configs on tiny cases with a tiny network."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from omnet_monai import ablation, budget
from omnet_monai.ablation import ablate
from omnet_monai.checkpoint import RunCheckpoint
from omnet_monai.variants import VARIANTS

TINY: dict[str, Any] = {
    "network_def#features": [2, 2, 4, 4],
    "patch_size": [24, 16, 16],
    "steps_per_epoch": 1,
    "cases_per_step": 1,
    "patches_per_task": 1,
    "train#trainer#max_epochs": 3,
}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every bundle run of a test, as its arguments."""
    recorded: list[dict[str, Any]] = []
    run = ablation.run

    def record(**kwargs: Any) -> None:
        recorded.append(kwargs)
        run(**kwargs)

    for module in (ablation, budget):
        monkeypatch.setattr(module, "run", record)
    return recorded


def kinds(runs: list[dict[str, Any]]) -> list[str]:
    """Name each run by its last override, and say whether it scores."""
    names = [[Path(file).stem for file in run["config_file"]] for run in runs]
    return ["score " + stems[-2] if stems[-1] == "cost" else "train " + stems[-1] for stems in names]


def test_rows_train_and_score_by_the_real_configs_and_are_not_run_again(
    phantoms: Path, tmp_path: Path, runs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    datalist = phantoms / "datalist.json"
    ablate(str(tmp_path), str(datalist), variants="mc2,omnet", **TINY)
    # The reference first; MC2 is two networks.
    assert kinds(runs) == ["train no_attention", "score no_attention", "train mc1", "train refined", "score mc2"]
    assert {run["train#trainer#max_epochs"] for run in runs} == {3}
    assert all(run["fold"] is None and run["seed"] == 0 for run in runs)
    assert [len(run["checkpoint_path"]) for run in runs if isinstance(run.get("checkpoint_path"), list)] == [2]

    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() in printed
    assert "| MC2 | " in printed
    assert "Budget: 3 optimizer steps for each network (3 epochs), by train.json, network_def#features [2, 2" in printed
    assert "Data: 3 cases in the training section, 1 cases scored (test)." in printed
    assert "equal time" not in printed
    with open(tmp_path / "table.csv", newline="") as file:
        mc2, omnet = csv.DictReader(file)
    assert (mc2["passes per window"], omnet["passes per window"]) == ("2.00", "1.00")
    assert mc2["paper's Dice WT/TC/ET"] == "0.9108/0.7911/0.7514"
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["patients"] for row in rows] == [{"phantom_003": "phantom_003"}] * 2
    assert [(row["variant"], row["place"], list(row["dice"])) for row in rows] == [
        ("omnet", "test", ["phantom_003"]),
        ("mc2", "test", ["phantom_003"]),
    ]
    assert rows[1]["cost"]["flops_per_case"] > 1.5 * rows[0]["cost"]["flops_per_case"]

    # MC1 is scored anew with the network that MC2 has trained.
    runs.clear()
    ablate(str(tmp_path), str(datalist), variants="mc1,omnet", **TINY)
    assert kinds(runs) == ["score mc1"]
    table = (tmp_path / "table.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines() if " | " in line][2:] == ["| MC1", "| OM-Net"]
    with pytest.raises(ValueError, match=r"rows\.json must be of the same settings .*, differs in overrides"):
        ablate(str(tmp_path), str(datalist), variants="mc1", **TINY | {"steps_per_epoch": 2})


def test_an_interrupted_training_is_taken_up_where_it_was(
    phantoms: Path,
    tmp_path: Path,
    runs: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save = RunCheckpoint.save

    def save_and_stop(self: RunCheckpoint, epoch: int, finished: bool = False) -> None:
        save(self, epoch, finished)
        if epoch == 2:
            raise KeyboardInterrupt

    arguments = {"variants": "cga", "folds": 1, "seeds": 3, **TINY}
    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoint, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            ablate(str(tmp_path), str(phantoms / "datalist.json"), **arguments)
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == []
    with pytest.raises(ValueError, match=r"rows\.json must be of the same settings .*, differs in overrides"):
        ablate(str(tmp_path), str(phantoms / "datalist.json"), **arguments | {"learning_rate": 0.5})
    capsys.readouterr()
    ablate(str(tmp_path), str(phantoms / "datalist.json"), **arguments)
    assert "Resuming after epoch 2 of 3" in capsys.readouterr().out
    assert kinds(runs) == ["train train", "train train", "score evaluate"]
    assert all((run["fold"], run["seed"]) == (1, 3) for run in runs)
    assert runs[-1]["datalist_key"] == "training"
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (row["variant"], row["place"], row["seed"]) == ("cga", "fold1", 3)


def test_equal_time_gives_each_row_as_many_epochs_as_the_references_training_lasts(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # OM-Net takes 20 s for 10 epochs, each network of a cascade 16: two of them have room for 20 / 32 of the epochs.
    # SE takes 19.5 s: as many epochs fit as it was trained for, and its row is that one again.
    trained: list[tuple[str, int]] = []
    scored: list[str] = []

    def train(self: Any, network: str, epochs: int, fold: int | None, seed: int) -> tuple[Path, float]:
        trained.append((network, epochs))
        return tmp_path / network, epochs * {"omnet": 2.0, "se": 1.95}.get(network, 1.6)

    def run(output_dir: str, **kwargs: Any) -> None:
        scored.append(Path(output_dir).name)
        cost = {"parameters": 1, "passes_per_window": 1, "flops_per_case": 1, "seconds_per_case": 1}
        Path(output_dir).mkdir(parents=True)
        (Path(output_dir) / "cost.json").write_text(json.dumps(cost))

    monkeypatch.setattr(ablation._Ablation, "train", train)
    monkeypatch.setattr(ablation, "run", run)
    monkeypatch.setattr(ablation, "read_dice", lambda path: {"a": [0.5] * 3, "b": [0.5] * 3})
    arguments = {"variants": ("mc2", "omnet", "se"), "equal_time": True, "train#trainer#max_epochs": 10}
    ablate(str(tmp_path / "out"), str(phantoms / "datalist.json"), **arguments)
    assert trained == [("omnet", 10), ("mc1", 10), ("refined", 10), ("se", 10), ("mc1", 6), ("refined", 6)]
    assert scored == [
        "omnet-test-seed0-10epochs",
        "mc2-test-seed0-10epochs",
        "se-test-seed0-10epochs",
        "mc2-test-seed0-6epochs",
    ]
    rows = json.loads((tmp_path / "out" / "rows.json").read_text())["rows"]
    assert [(row["variant"], row["epochs"]) for row in rows if row["budget"] == "time"] == [("mc2", 6), ("se", 10)]
    # Beside MC2, which takes 32 s, there is time for 16 epochs of either.
    trained.clear()
    ablate(str(tmp_path / "out"), str(phantoms / "datalist.json"), **arguments, reference="mc2")
    assert trained == [("omnet", 16), ("se", 16)]


def test_variants_of_post_processing_set_their_switch_in_the_evaluation_alone(
    phantoms: Path, tmp_path: Path, runs: list[dict[str, Any]]
) -> None:
    variants = "cga,core_holes,all_clusters,enhancing_volume"
    settings = TINY | {"cluster_volume": 40, "pictures": False}
    ablate(str(tmp_path), str(phantoms / "datalist.json"), variants=variants, **settings)
    assert kinds(runs) == ["train train", *["score evaluate"] * 4]
    # The reference, here the last one, comes first. Its limit follows the one of clusters.
    assert [(run.get("fill_core"), run["cluster_volume"], run.get("enhancing_volume")) for run in runs] == [
        (None, 40, None),
        (None, 40, "$0.1 * @cluster_volume"),
        (None, 40, None),
        (False, 40, None),
        (None, 0, None),
    ]
    assert all(run["search"] == 0 for run in runs)  # networks are compared on every window
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variants": "omnet9"}, rf"variants must be some of {', '.join(VARIANTS)}, got omnet9"),
        ({"variants": "mc1,mc2", "reference": "cga"}, "reference must be one of the variants mc1, mc2, got 'cga'"),
        ({"folds": (0, 7)}, "fold must be one of 0, 1, 2 in training of .*, got 7"),
        ({"section": "validation"}, "section must be one of training, test in .*, got 'validation'"),
        ({"learning_rte": 0.1}, "overrides must be ids of train.json .*, got learning_rte"),
        ({"seed": 5}, "overrides must be ids of .* other than seed, fold, .*, got seed"),
        ({"learning_rate": True}, "--learning_rate must be followed by a value, such as 0.001, got True"),
        ({"bundle": "nowhere"}, "must hold configs/segment.json, got nowhere"),
    ],
    ids=["variant", "reference", "fold", "section", "id", "id of a row", "no number", "bundle"],
)
def test_bad_names_are_refused_before_anything_runs(
    arguments: dict[str, Any], message: str, phantoms: Path, tmp_path: Path, runs: list[dict[str, Any]]
) -> None:
    with pytest.raises(ValueError, match=message):
        ablate(str(tmp_path / "out"), str(phantoms / "datalist.json"), **arguments)
    assert not runs
    assert not (tmp_path / "out").exists()
