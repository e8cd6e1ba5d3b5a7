"""
Race OM-Net against the networks that people use today: same cases, same training time, same machine.

  python benchmarks/race.py FOLDER DATALIST --minutes 30 --folds 0,1,2
  python benchmarks/race.py FOLDER DATALIST --minutes 120

The first call trains every entrant without one fold at a time and scores it there; the second trains on the whole
section "training" and scores "test". Each entrant keeps its published network, loss and optimizer, and its schedule
follows the time. The learning rate, and SegResNet's crop, are chosen on the first fold, by as many trials for each
(see entrants.py); a call without folds takes the choice that was made in the same FOLDER, or else the first trial.
Precision and augmentation are each entrant's own. All are scored at thresholds of 0.5 and without post-processing:
the bundle's defaults were chosen on cases that the folds hold out.

FOLDER/RUN/result.json has every case, FOLDER/race.md the table. Interrupted, the same command goes on. Calls for one
entrant or, once settings are chosen, one fold may run side by side. Time is wall time on a GPU, and elsewhere what the
process computed for each of its threads. nnU-Net needs "pip install nnunetv2".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
import nnunet
import numpy as np
import torch
from entrants import ENTRANTS, SEGRESNET, TIMED, Entrant
from filelock import FileLock
from monai.bundle import run

from omnet_monai import __version__
from omnet_monai.budget import train_once
from omnet_monai.cost import machine
from omnet_monai.datalist import read_cases, read_scored_cases
from omnet_monai.demo import bundle_root
from omnet_monai.files import keep_settings, require_same, sha256, whole_file
from omnet_monai.regions import REGIONS
from omnet_monai.results import read_dice
from omnet_monai.summary import paired_differences

EPOCHS = 50
"""Of each training, each with an equal share of its time and a checkpoint at its end."""

UNREFINED: dict[str, Any] = {
    "thresholds": [0.5, 0.5, 0.5],
    "cluster_peak": 0,
    "cluster_volume": 0,
    "inner_cluster_volume": 0,
    "fill_core": False,
    "search": 0,
}


def main(
    folder: str,
    datalist: str,
    minutes: float = 30,
    folds: int | Sequence[int] = (),
    entrants: str | Sequence[str] = (),
    trials: int = 3,
    seed: int = 0,
    **overrides: Any,
) -> None:
    """
    Race.

    Args:
        folder: where networks, label maps and the table go.
        datalist: JSON file that lists the cases.
        minutes: training time of each entrant, of all its networks together.
        folds: folds of the training section to race on; none for the test section.
        entrants: keys of ``ENTRANTS``, the one that differences are taken to first; none for all.
        trials: number of settings to choose from.
        seed: of the training; nnU-Net has none.
        overrides: ids of ``train.json`` to set for all but nnU-Net, such as ``num_workers``.

    Raises:
        ValueError: for other entrants and for cases without labels.
    """
    names = [entrants] if isinstance(entrants, str) else list(entrants or ENTRANTS)
    unknown = [name for name in names if name not in ENTRANTS]
    if unknown:
        raise ValueError(f"entrants must be some of {', '.join(ENTRANTS)}, got {', '.join(unknown)}")
    if "nnunet" in names:
        nnunet.require()
    places: list[int | None] = [folds] if isinstance(folds, int) else list(folds) or [None]
    race = Race(Path(folder).resolve(), Path(datalist).resolve(), minutes, seed, overrides)
    for fold in places:
        race.check_cases(fold)
    for name in names:
        if places != [None]:
            race.choose(name, places[0], trials)
        for fold in places:
            race.run(name, fold, race.choice(name))
    print(race.write_table(names, places))


class Race:
    """
    Races of one length, in one folder.

    Args:
        folder: where everything goes.
        datalist: JSON file that lists the cases.
        minutes: training time of each entrant.
        seed: of the training.
        overrides: ids of ``train.json`` to set.
    """

    def __init__(self, folder: Path, datalist: Path, minutes: float, seed: int, overrides: dict[str, Any]) -> None:
        self.folder, self.datalist, self.minutes, self.seed, self.overrides = folder, datalist, minutes, seed, overrides
        self.root = bundle_root("")
        configs = sha256(*sorted((self.root / "configs").glob("*.json")), SEGRESNET, TIMED)
        settings = {"version": __version__, "datalist_sha256": sha256(datalist), "configs_sha256": configs}
        self.settings = {**settings, "overrides": overrides}

    def check_cases(self, fold: int | None) -> None:
        """Read the cases to train on and to score, for their errors."""
        read_cases(self.datalist, "training", fold)
        read_scored_cases(self.datalist, self._section(fold), fold)

    def choose(self, name: str, fold: int | None, trials: int) -> None:
        """Try an entrant's settings on a fold; that of the highest mean Dice of all regions and cases is its choice."""
        if not self._choice_file(name).is_file():
            tried = range(min(trials, len(ENTRANTS[name].trials)))
            means = [float(np.mean(list(self.run(name, fold, trial)["dice"].values()))) for trial in tried]
            _write(self._choice_file(name), {"trial": int(np.argmax(means)), "minutes": self.minutes, "means": means})

    def choice(self, name: str) -> int:
        """Return the trial that was chosen, or else the first."""
        return int(_read(self._choice_file(name)).get("trial", 0))

    def run(self, name: str, fold: int | None, trial: int) -> dict[str, Any]:
        """Train and score an entrant, unless that is done."""
        out = self._folder_of(name, fold, trial)
        keep_settings(out / "settings.json", self.settings)
        if not self.result(name, fold, trial):
            print(f"\n=== {out.name}", flush=True)
            race = self.run_nnunet if name == "nnunet" else self.run_bundle
            steps, seconds = race(ENTRANTS[name], fold, ENTRANTS[name].trials[trial], out)
            dice = read_dice(out / "scored" / "scores.csv")
            result = {"steps": steps, "minutes": seconds / 60, "dice": dice, "machine": machine()}
            _write(out / "result.json", result)
        return self.result(name, fold, trial)

    def result(self, name: str, fold: int | None, trial: int) -> dict[str, Any]:
        """
        Return what a run gave, nothing if it was not finished.

        Raises:
            ValueError: for a run by another version, data list or other configs.
        """
        file = self._folder_of(name, fold, trial) / "result.json"
        result = _read(file)
        if result:  # which had the settings in it before they got a file
            require_same(file, result.get("settings") or _read(file.with_name("settings.json")), self.settings)
        return result

    def run_bundle(self, entrant: Entrant, fold: int | None, trial: dict[str, Any], out: Path) -> tuple[int, float]:
        """Train by the bundle's configs, each of the entrant's networks for an equal share of the time, and score."""
        settings = {
            "bundle_root": str(self.root),
            "meta_file": str(self.root / "configs" / "metadata.json"),
            "logging_file": str(self.root / "configs" / "logging.conf"),
            "datalist": str(self.datalist),
            "cache_dir": str(self.folder / "cache"),
            "fold": fold,
            "seed": self.seed,
            **trial,
            **self.overrides,
        }
        budget = {"seconds": 60 * self.minutes / len(entrant.networks), "warmup": entrant.warmup}
        steps, seconds, weights = 0, 0.0, []
        for number, files in enumerate(entrant.networks):
            network = out / f"network{number}"
            seconds += train_once(network, EPOCHS, self._configs("train.json", *files, TIMED), settings | budget)
            state = torch.load(network / "run" / "checkpoint.pt", map_location="cpu", weights_only=True)
            steps += state["lr_scheduler"]["last_epoch"]
            weights.append(str(network / "model.pt"))
        settings |= {"checkpoint_path": weights if len(weights) > 1 else weights[0], "output_dir": str(out / "scored")}
        settings |= {"datalist_key": self._section(fold), **UNREFINED}
        run(config_file=self._configs("train.json", *entrant.scoring, "evaluate.json"), **settings)
        return steps, seconds

    def run_nnunet(self, entrant: Entrant, fold: int | None, trial: dict[str, Any], out: Path) -> tuple[int, float]:
        """Train nnU-Net for the time, and score what it predicts."""
        return nnunet.race(self.folder / "nnunet", self.datalist, self._section(fold), fold, self.minutes, trial, out)

    def write_table(self, names: Sequence[str], places: Sequence[int | None]) -> str:
        """Write the table of the entrants that have run on all folds, and return it."""
        rows = {name: [self.result(name, fold, self.choice(name)) for fold in places] for name in names}
        done = {name: runs for name, runs in rows.items() if all(runs)}
        scored = [case for fold in places for case in read_scored_cases(self.datalist, self._section(fold), fold)]
        patients = {case["case"]: case["patient"] for case in scored if "patient" in case}
        text = _table(done, patients) + f"\nMachine: {machine()}.\n"
        with FileLock(self.folder / ".lock"), whole_file(self.folder / "race.md") as part:
            part.write_text(text, encoding="utf-8")
        return text

    def _folder_of(self, name: str, fold: int | None, trial: int) -> Path:
        place = "test" if fold is None else f"fold{fold}"
        return self.folder / f"{name}-{place}-{self.minutes:g}min-trial{trial}-seed{self.seed}"

    def _choice_file(self, name: str) -> Path:
        return self.folder / f"{name}-choice.json"

    def _section(self, fold: int | None) -> str:
        return "test" if fold is None else "training"

    def _configs(self, *names: str) -> list[str]:
        return [str(self.root / "configs" / name) for name in names]


def _read(file: Path) -> dict[str, Any]:
    """Read a JSON object, an empty one if there is no file."""
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _write(file: Path, content: dict[str, Any]) -> None:
    with whole_file(file) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _table(done: dict[str, list[dict[str, Any]]], patients: dict[str, str]) -> str:
    """Lay out a line per entrant and one per case; cases of one patient are not independent of each other."""
    dice = {name: {case: np.array(d) for run in runs for case, d in run["dice"].items()} for name, runs in done.items()}
    cases = sorted(next(iter(dice.values()), {}))
    titles = [ENTRANTS[name].title for name in done]
    lines = [
        f"| entrant | steps | minutes | Dice {'/'.join(REGIONS)} | mean | difference to {titles[0]} | its error |",
        "|---|---|---|---|---|---|---|",
    ]
    scores = {name: np.array([dice[name][case] for case in cases]) for name in done}
    first, owners = next(iter(scores.values())), [patients.get(case, case) for case in cases]
    for (name, runs), title in zip(done.items(), titles, strict=True):
        paired = paired_differences(scores[name].mean(1, keepdims=True), first.mean(1, keepdims=True), owners)
        versus = ("-", "-") if scores[name] is first else (f"{paired.mean[0]:+.3f}", f"{paired.error[0]:.3f}")
        steps, minutes = (np.mean([run[key] for run in runs]) for key in ("steps", "minutes"))
        cells = [title, f"{steps:.0f}", f"{minutes:.1f}", _triple(scores[name].mean(0)), f"{scores[name].mean():.3f}"]
        lines.append(f"| {' | '.join([*cells, *versus])} |")
    lines += ["", f"| case, Dice {'/'.join(REGIONS)} | {' | '.join(titles)} |", f"|---{'|---' * len(titles)}|"]
    lines += [f"| {case} | {' | '.join(_triple(dice[name][case]) for name in done)} |" for case in cases]
    return "\n".join(lines) + "\n"


def _triple(values: np.ndarray) -> str:
    return "/".join(f"{value:.3f}" for value in values)


if __name__ == "__main__":
    fire.Fire(main, name="python benchmarks/race.py")
