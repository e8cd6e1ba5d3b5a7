"""
Score weights on cases that they have not seen, whole and with each sequence taken away, in the folder of a clone.

  python benchmarks/missing_sequences.py DATALIST OUTPUT FOLD0/model.pt FOLD1/model.pt FOLD2/model.pt

The first weights were trained with fold 0 held out, the second with fold 1, and so on; each is scored on its own fold.
OUTPUT/table.md has the means and every case. Interrupted, the same command goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
import numpy as np
from monai.bundle import run

from omnet_monai import __version__
from omnet_monai.datalist import read_scored_cases
from omnet_monai.demo import bundle_root
from omnet_monai.files import keep_settings, sha256, whole_file
from omnet_monai.regions import REGIONS, SEQUENCES
from omnet_monai.results import read_dice

WHOLE = "none"


def main(datalist: str, output: str, *weights: str, **overrides: Any) -> None:
    """
    Score the cases of every fold, and print a table.

    Args:
        datalist: JSON file with the folds, of cases with a file for each sequence.
        output: folder for the results.
        weights: a file for each fold.
        overrides: config ids to set.

    Raises:
        ValueError: for a folder with results of other weights, cases, configs or overrides, or of another version.
    """
    out = Path(output).resolve()
    configs = sorted((bundle_root() / "configs").glob("*.json"))
    settings = {"version": __version__, "configs_sha256": sha256(*configs), "overrides": str(overrides)}
    settings |= {"datalist_sha256": sha256(datalist), "weights_sha256": sha256(*weights)}
    keep_settings(out / "settings.json", settings)
    dice: dict[str, dict[str, np.ndarray]] = {}
    for lost in (WHOLE, *SEQUENCES):
        dice[lost] = {}
        for fold, path in enumerate(weights):
            folder = out / f"{lost}-fold{fold}"
            if not _is_scored(folder / "scores.csv", datalist, fold):
                cases = write_without(lost, datalist, fold, out / "datalists" / f"{lost}-fold{fold}.json")
                score(cases, fold, Path(path).resolve(), folder, overrides)
            dice[lost] |= {case: np.array(scores) for case, scores in read_dice(folder / "scores.csv").items()}
    text = table(dice)
    with whole_file(out / "table.md") as part:
        part.write_text(text, encoding="utf-8")
    print(text)


def _is_scored(file: Path, datalist: str, fold: int) -> bool:
    """Tell whether a table has scores of every case of a fold: one that failed is in it without."""
    cases = {case["case"] for case in read_scored_cases(datalist, "training", fold)}
    return file.is_file() and set(read_dice(file)) == cases


def write_without(lost: str, datalist: str, fold: int, path: Path) -> Path:
    """Write a data list of the held-out cases in which a sequence of each is missing, and return its path."""
    cases = read_scored_cases(datalist, "training", fold)
    for case in cases:
        case["image"] = [None if name == lost else file for name, file in zip(SEQUENCES, case["image"], strict=True)]
    with whole_file(path) as part:
        part.write_text(json.dumps({"training": cases}, indent=1), encoding="utf-8")
    return path


def score(datalist: Path, fold: int, weights: Path, output: Path, overrides: dict[str, Any]) -> None:
    """Run the bundle's evaluation of a fold."""
    root = bundle_root("")
    settings: dict[str, Any] = {
        "bundle_root": str(root),
        "meta_file": str(root / "configs" / "metadata.json"),
        "logging_file": str(root / "configs" / "logging.conf"),
        "datalist": str(datalist),
        "datalist_key": "training",
        "fold": fold,
        "checkpoint_path": str(weights),
        "output_dir": str(output),
        "pictures": False,
        "search": 0,  # as incomplete cases have it anyway
    }
    run(config_file=[str(root / "configs" / name) for name in ("train.json", "evaluate.json")], **settings, **overrides)


def table(dice: dict[str, dict[str, np.ndarray]]) -> str:
    """Lay out the means without each sequence and their falls, then every case."""
    whole = _mean(dice[WHOLE])
    lines = [f"| missing | mean Dice {'/'.join(REGIONS)} | lost by it |", "|---|---|---|"]
    lines += [f"| {lost} | {_triple(_mean(cases))} | {_triple(whole - _mean(cases))} |" for lost, cases in dice.items()]
    lines += ["", f"| case, missing: | {' | '.join(dice)} |", f"|---{'|---' * len(dice)}|"]
    lines += [f"| {case} | {' | '.join(_triple(cases[case]) for cases in dice.values())} |" for case in dice[WHOLE]]
    return "\n".join(lines) + "\n"


def _mean(cases: dict[str, np.ndarray]) -> np.ndarray:
    return np.mean(list(cases.values()), axis=0)


def _triple(values: Sequence[float] | np.ndarray) -> str:
    return "/".join(f"{value:.3f}" for value in values)


if __name__ == "__main__":
    fire.Fire(main, name="python benchmarks/missing_sequences.py")
