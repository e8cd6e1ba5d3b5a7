"""The first run: generate cases, train a small network through the curriculum, segment held-out cases, score them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser, run

from omnet_monai.datalist import write_datalist
from omnet_monai.phantom import write_phantoms
from omnet_monai.regions import REGIONS
from omnet_monai.report import format_table
from omnet_monai.results import read_dice
from omnet_monai.weights import ModelFile

__all__ = ["bundle_config", "bundle_root", "demo", "generate_cases", "inference_config", "require_values"]


def demo(
    directory: str = "quickstart", seed: int = 0, training: int = 60, test: int = 4, bundle: str = "", **overrides: Any
) -> None:
    """
    Run the whole of OM-Net on generated cases in a few minutes, and print Dice per region on held-out cases.

    Args:
        directory: folder for the cases, the weights, the label maps and the report.
        seed: seed of the cases and of the training.
        training: number of cases to train on.
        test: number of held-out cases.
        bundle: root of the bundle, by default the current folder if it is one, or that beside this package.
        overrides: config ids to override, as for ``monai.bundle run``.

    Raises:
        ValueError: for an id that the configs do not have, and without a case to train on or to hold out.
    """
    start, root, out = time.monotonic(), bundle_root(bundle), Path(directory)
    recipe = [str(root / "configs" / name) for name in ("train.json", "demo.json")]
    parser = bundle_config(root, ("train.json", "demo.json", "evaluate.json"), overrides)
    if min(training, test) < 1:
        raise ValueError(f"training and test must have a case at least, got {training} and {test}")

    _say(f"1 of 4: generating {training + test} cases")
    datalist = generate_cases(out / "cases", training + test, seed, test=test)
    settings = {
        "meta_file": str(root / "configs" / "metadata.json"),
        "logging_file": str(root / "configs" / "logging.conf"),
        "datalist": str(datalist),
        "ckpt_dir": str(out / "models"),
        "run_dir": str(out / "run"),
        "cache_dir": str(out / "cache"),
        "seed": seed,
        **overrides,
    }
    _say("2 of 4: scoring an untrained network")
    torch.manual_seed(seed)
    ModelFile(out / "models" / "untrained.pt", parser.get_parsed_content("network_def")).save()
    untrained = _evaluate(recipe, settings, out / "models" / "untrained.pt", out / "untrained")
    _say("3 of 4: training through the three stages")
    run(config_file=recipe, **settings)
    _say("4 of 4: segmenting and scoring the held-out cases")
    trained = _evaluate(recipe, settings, out / "models" / "model.pt", out / "segmented")

    header = ["Dice", *(f"{region} {network}" for network in ("untrained", "trained") for region in REGIONS)]
    rows: list[list[str | float]] = [[case, *untrained[case], *trained[case]] for case in trained]
    print(f"\n{format_table(header, rows)}\n\nlabel maps: {out / 'segmented'}")
    print(f"pictures:   {out / 'segmented' / 'pictures'}")
    print(f"report:     {out / 'segmented' / 'report.html'}\nweights:    {out / 'models' / 'model.pt'}")
    print(f"done in {time.monotonic() - start:.0f} s")


def bundle_root(bundle: str = "") -> Path:
    """
    Return the root of the bundle: the given one, or the current folder, which ``monai.bundle run`` takes too, or the
    one this package was packaged in, or that beside its source.

    Raises:
        ValueError: if there are no configs.
    """
    package = Path(__file__).resolve().parent
    roots = [Path(bundle)] if bundle else [Path.cwd(), package.parent, package.parents[1] / "bundle"]
    for root in roots:
        if (root / "configs" / "segment.json").is_file():  # which other bundles do not have
            return root
    raise ValueError(f"the bundle must hold configs/segment.json, got {roots[-1]}; name it with --bundle")


def generate_cases(
    folder: str | Path,
    cases: int,
    seed: int = 0,
    size: Sequence[int] = (96, 96, 64),
    test: int = 0,
    kind: str = "mixed",
) -> Path:
    """
    Write generated cases with a datalist whose first ``test`` cases are for the test, and return its path.

    Args:
        folder: where to write.
        cases: number of cases.
        seed: of the cases.
        size: shape of each volume in voxels.
        test: how many of the cases are for the test, fewer than all.
        kind: what they have, as for :func:`~omnet_monai.phantom.write_phantoms`.

    Raises:
        ValueError: if no case is left for training.
    """
    if not 0 <= test < max(cases, 1):  # less than one case is refused by what writes them
        raise ValueError(f"test must be fewer than all {cases} cases, got {test}")
    names = [path.name for path in write_phantoms(folder, cases, seed, size, kind)]
    split = Path(folder) / "split.json"
    split.write_text(json.dumps({"training": names[test:], "test": names[:test]}))
    return write_datalist(folder, folds=min(5, cases - test), split=split)


def inference_config(root: Path, overrides: dict[str, Any]) -> ConfigParser:
    """Read a bundle's inference.json with overrides of its ids, as :func:`bundle_config` does."""
    return bundle_config(root, ("inference.json",), overrides)


def bundle_config(root: Path, names: Sequence[str], overrides: dict[str, Any]) -> ConfigParser:
    """
    Read a bundle's configs, each on top of those before, with overrides of their ids.

    Raises:
        ValueError: for an id that they do not have, and for a number's id without a value.
    """
    paths, parser = [root / "configs" / name for name in names], ConfigParser()
    parser.read_config(paths)
    unknown = [name for name in overrides if name not in parser]
    if unknown:
        raise ValueError(f"overrides must be ids of {', '.join(map(str, paths))}, got {', '.join(unknown)}")
    require_values(parser, overrides)
    parser.update({"bundle_root": str(root), **overrides})
    return parser


def require_values(parser: ConfigParser, overrides: dict[str, Any]) -> None:
    """Refuse True for an id that has a number, or several: so a command line calls an option without its value."""
    for name in (name for name, value in overrides.items() if value is True):
        default = parser.get(name.replace("::", "#"))
        if type(default) in (int, float, list):
            raise ValueError(f"--{name} must be followed by a value, such as {default}, got True")


def _say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def _evaluate(recipe: list[str], settings: dict[str, Any], weights: Path, out: Path) -> dict[str, list[float]]:
    """Run the evaluation config and return Dice of WT, TC, ET by case, the mean last."""
    evaluate = [*recipe, str(Path(recipe[0]).with_name("evaluate.json"))]
    run(config_file=evaluate, checkpoint_path=str(weights), output_dir=str(out), **settings)
    scores = read_dice(out / "scores.csv")
    return scores | {"mean": np.mean(list(scores.values()), axis=0).tolist()}
