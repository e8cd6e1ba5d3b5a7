"""The first run: generate cases, train a small network through the curriculum, segment held-out cases, score them."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, run
from monai.utils import set_determinism

from omnet_monai.datalist import read_cases, write_datalist
from omnet_monai.loading import LoadCased
from omnet_monai.phantom import write_phantoms
from omnet_monai.regions import REGIONS
from omnet_monai.report import format_table, save_overlay
from omnet_monai.weights import ModelFile

__all__ = ["bundle_root", "demo"]


def demo(
    directory: str = "quickstart", seed: int = 0, training: int = 12, test: int = 4, bundle: str | None = None
) -> None:
    """
    Run the whole of OM-Net on generated cases in a few minutes, and print Dice per region on held-out cases.

    Args:
        directory: folder for the cases, the weights, the label maps and the pictures.
        seed: seed of the cases and of the training.
        training: number of cases to train on.
        test: number of held-out cases.
        bundle: root of the bundle whose configs are run, the one beside this package by default.
    """
    start, root, out = time.monotonic(), bundle_root(bundle), Path(directory)
    _say(f"1 of 4: generating {training + test} cases in {out / 'cases'}")
    names = [path.name for path in write_phantoms(out / "cases", training + test, seed)]
    split = out / "cases" / "split.json"
    split.write_text(json.dumps({"training": names[test:], "test": names[:test]}))
    datalist = write_datalist(out / "cases", folds=2, split=split)

    overrides: dict[str, Any] = {
        "bundle_root": str(root),
        "datalist": str(datalist),
        "run_dir": str(out / "run"),
        "ckpt_dir": str(out / "models"),
        "seed": seed,
        "logging_file": str(root / "configs" / "logging.conf"),
        "meta_file": str(root / "configs" / "metadata.json"),
    }
    recipe = [str(root / "configs" / name) for name in ("train.json", "demo.json")]
    _say("2 of 4: scoring an untrained network")
    _save_untrained(recipe, out / "models" / "untrained.pt", seed)
    untrained = _evaluate(recipe, root, overrides, out / "untrained", out / "models" / "untrained.pt")
    _say("3 of 4: training through the three stages")
    set_determinism(seed)
    run(config_file=recipe, **overrides)
    _say("4 of 4: segmenting and scoring the held-out cases")
    trained = _evaluate(recipe, root, overrides, out / "segmented", out / "models" / "model.pt")

    header = [
        "held-out case",
        *(f"{region} untrained" for region in REGIONS),
        *(f"{region} trained" for region in REGIONS),
    ]
    rows: list[list[str | float]] = [[case, *untrained[case], *trained[case]] for case in trained]
    picture = _draw(read_cases(datalist, "test")[0], out / "segmented")
    print(f"\nDice per region\n{format_table(header, rows)}\n")
    print(f"label maps: {out / 'segmented'}\npicture:    {picture}\nweights:    {out / 'models' / 'model.pt'}")
    print(f"done in {time.monotonic() - start:.0f} s")


def bundle_root(bundle: str | None = None) -> Path:
    """
    Return the root of the bundle: the given one, or the one that lies beside this package's source.

    Raises:
        ValueError: if there are no configs.
    """
    root = Path(bundle) if bundle else Path(__file__).resolve().parents[2] / "bundle"
    if not (root / "configs" / "train.json").is_file():
        raise ValueError(f"the bundle must hold configs/train.json, got {root}; name it with --bundle")
    return root


def _say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def _save_untrained(recipe: list[str], path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    parser = ConfigParser()
    parser.read_config(recipe)
    ModelFile(path, parser.get_parsed_content("network_def")).save()


def _evaluate(
    recipe: list[str], root: Path, overrides: dict[str, Any], out: Path, weights: Path
) -> dict[str, list[float]]:
    """Run the evaluation config and return Dice of WT, TC, ET by case, the mean last."""
    files = [*recipe, str(root / "configs" / "evaluate.json")]
    run(config_file=files, output_dir=str(out), checkpoint_path=str(weights), **overrides)
    with open(out / "dice.csv", newline="", encoding="utf-8") as file:
        return {case: [float(value) for value in values] for case, *values in list(csv.reader(file))[1:]}


def _draw(case: dict[Any, Any], segmented: Path) -> Path:
    loaded = LoadCased()(case)
    pred = LoadCased()({**case, "label": str(segmented / f"{case['case']}_seg.nii.gz"), "scheme": "brats2023"})
    path = segmented / f"{case['case']}.png"
    title = f"{case['case']}: WT yellow, TC red, ET blue; dashed: truth"
    save_overlay(loaded["image"], pred["label"], path, truth=loaded["label"], title=title)
    return path
