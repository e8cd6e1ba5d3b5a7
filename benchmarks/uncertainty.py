"""
Compare measures of uncertainty, and settings of segment, on cases that weights have not seen, in the folder of a clone.

  python benchmarks/uncertainty.py DATALIST OUTPUT FOLD0/model.pt FOLD1/model.pt FOLD2/model.pt

The first weights were trained with fold 0 held out, the second with fold 1, and so on; each segments its own fold. With
``--section test`` one file of weights segments the cases of that section.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import Compose, Invertd
from scipy.stats import spearmanr

from omnet_monai import __version__
from omnet_monai.datalist import read_scored_cases
from omnet_monai.demo import bundle_root, inference_config
from omnet_monai.files import keep_settings, sha256, whole_file
from omnet_monai.metrics import dice
from omnet_monai.regions import REGIONS, regions_from_classes
from omnet_monai.report import format_table
from omnet_monai.transforms import LabelsToRegionsd
from omnet_monai.uncertainty import chance_of_error, region_uncertainty
from omnet_monai.weights import load_weights

SHARE = 0.05
"""Of the brain's voxels, the most uncertain ones that are looked at."""

BINS = 10
LEVELS = 2000
DROPOUTS = 8

Run = Callable[[Inferer, torch.Tensor, torch.nn.Module], Iterator[torch.Tensor]]


def main(
    datalist: str, output: str, *weights: str, section: str = "training", only: str = "", **overrides: Any
) -> None:
    """
    Segment what is left of the held-out cases, keep the figures of each in ``OUTPUT/<case>.json``, and print tables.

    Args:
        datalist: JSON file with the folds.
        output: folder for the figures; a case that has some is not segmented again.
        weights: a file for each fold, or one for another section.
        section: of the datalist; "training" has folds.
        only: settings to run, separated by ";", by default all.
        overrides: ids of inference.json to override.

    Raises:
        ValueError: for a folder with figures of other weights, cases, configs or overrides, or of another version, and
            for several weights of a section without folds.
    """
    if section != "training" and len(weights) != 1:
        raise ValueError(f"section {section!r} has no folds and needs one file of weights, got {len(weights)}")
    configs = sorted((bundle_root() / "configs").glob("*.json"))
    settings = {"version": __version__, "configs_sha256": sha256(*configs), "overrides": str(overrides)}
    settings |= {"section": section, "datalist_sha256": sha256(datalist), "weights_sha256": sha256(*weights)}
    keep_settings(Path(output) / "settings.json", settings)
    chosen = {name: setting for name, setting in SETTINGS.items() if not only or name in only.split(";")}
    found = {}
    for fold, path in enumerate(weights):
        parsers = {}
        for case in read_scored_cases(datalist, section, fold if section == "training" else None):
            file = Path(output) / f"{case['case']}.json"
            results = json.loads(file.read_text()) if file.is_file() else {}
            for name, (ids, run) in chosen.items():
                if name in results:
                    continue
                if str(ids) not in parsers:
                    parsers[str(ids)] = _read(path, ids | overrides)
                results[name] = _measure(parsers[str(ids)], case, run)
                with whole_file(file) as part:
                    part.write_text(json.dumps(results, indent=1))
                print(case["case"], name, json.dumps(results[name]["dice"]), flush=True)
            found[case["case"]] = results
    _print(found)


def _read(weights: str, overrides: dict[str, Any]) -> ConfigParser:
    parser = inference_config(bundle_root(), overrides)
    load_weights(parser.get_parsed_content("network"), weights)
    return parser


@torch.no_grad()
def _measure(parser: ConfigParser, case: dict[str, Any], run: Run) -> dict[str, Any]:
    """Segment a case as segment does, and measure its label map, its probabilities and each map of uncertainty."""
    prepare, network = parser.get_parsed_content("preprocessing"), parser.get_parsed_content("network").eval()
    loaded = prepare(case, end=1)
    brain, truth = loaded["image"].as_tensor().any(0), regions_from_classes(loaded["label"].as_tensor())
    data, start = prepare(loaded, start=1), time.monotonic()
    image = data["image"].as_tensor()[None].to(parser.get_parsed_content("device"))
    passes = [probs[0].cpu() for probs in run(parser.get_parsed_content("inferer"), image, network)]
    took, mean = time.monotonic() - start, torch.stack(passes).mean(0)
    maps = {
        "mean entropy": _entropies(mean).mean(0, keepdim=True),
        "largest entropy": _entropies(mean).amax(0, keepdim=True),
    }
    if len(passes) > 1:  # mutual information of probability and pass
        maps["disagreement"] = maps["mean entropy"] - _entropies(torch.stack(passes)).mean((0, 1))[None]
    *refine, _ = parser.get_parsed_content("postprocessing").transforms  # all but saving
    back = Invertd(["probs", "maps"], prepare, "image", nearest_interp=False)
    results = {"pred": mean.clone(), "probs": mean, "maps": torch.cat([*maps.values()])}
    masks_of = LabelsToRegionsd("pred", parser.get_parsed_content("label_scheme"))
    data |= {name: MetaTensor(values, affine=data["image"].affine) for name, values in results.items()}
    data = Compose([*refine, back, masks_of])(data)
    masks, probs = data["pred"].as_tensor(), data["probs"].as_tensor()
    entropies = dict(zip(maps, data["maps"].as_tensor().split(1), strict=True))
    maps = {"chance of error": chance_of_error(probs, masks)} | entropies
    wrong = (masks != truth).any(0)[brain]
    ranked = [values[0, brain] for values in maps.values()]
    caught = [_caught(values, wrong) for values in ranked]
    return {
        "seconds": took,
        "dice": [dice(mask, true) for mask, true in zip(masks, truth, strict=True)],
        "uncertainty": [*region_uncertainty(probs, masks).values()],
        "brain": int(brain.sum()),
        "wrong": int(wrong.sum()),
        "caught": dict(zip(maps, caught, strict=True)),
        "levels": dict(zip(maps, (_levels(values, wrong) for values in ranked), strict=True)),
        "bins": [_bins(prob[brain], true[brain]) for prob, true in zip(probs, truth, strict=True)],
    }


def _once(inferer: Inferer, image: torch.Tensor, network: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield inferer(image, network)


def _flips(inferer: Inferer, image: torch.Tensor, network: torch.nn.Module) -> Iterator[torch.Tensor]:
    for sides in product((False, True), repeat=3):
        dims = [axis for axis, mirrored in enumerate(sides, start=2) if mirrored]
        yield inferer(image.flip(dims), network).flip(dims)


def _dropout(inferer: Inferer, image: torch.Tensor, network: torch.nn.Module) -> Iterator[torch.Tensor]:
    torch.manual_seed(0)
    for _ in range(DROPOUTS):
        yield inferer(image, network.train())  # the inferer leaves nothing but dropout on


SETTINGS: dict[str, tuple[dict[str, Any], Run]] = {
    "fast": ({"overlap": 0.0}, _once),
    "default": ({"overlap": 0.125}, _once),
    "quarter": ({"overlap": 0.25}, _once),
    "flips": ({"overlap": 0.125}, _flips),
    "accurate": ({"overlap": 0.5, "search": 0}, _flips),
    "dropout": ({"overlap": 0.125}, _dropout),
}
"""Ids of inference.json and the passes of each setting."""


def _entropies(probs: torch.Tensor) -> torch.Tensor:
    """Binary entropies of the regions in bits, of the shape of the probabilities."""
    return (torch.special.entr(probs) + torch.special.entr(1 - probs)) / np.log(2)


def _caught(uncertainty: torch.Tensor, wrong: torch.Tensor) -> int:
    """Count the wrong voxels among the share of the most uncertain ones."""
    return int(wrong[uncertainty.topk(int(SHARE * len(uncertainty))).indices].sum())


def _levels(uncertainty: torch.Tensor, wrong: torch.Tensor) -> list[list[int]]:
    """Count all voxels, and the wrong ones, by levels of uncertainty in [0, 1], the highest first."""
    place = LEVELS - 1 - (uncertainty * LEVELS).long().clamp(0, LEVELS - 1)
    return [torch.bincount(place[chosen], minlength=LEVELS).tolist() for chosen in (wrong | True, wrong)]


def _caught_together(levels: Sequence[list[list[int]]]) -> float:
    """Return the share of the wrong voxels of all cases that is among the most uncertain voxels of all of them."""
    voxels, wrong = np.cumsum(np.sum(levels, axis=0), axis=1)
    return float(np.interp(SHARE * voxels[-1], voxels, wrong) / wrong[-1])


def _bins(probs: torch.Tensor, truth: torch.Tensor) -> list[list[float]]:
    """Number of voxels, mean probability and share that is true, in bins of equal width of the probability."""
    place = (probs * BINS).long().clamp(0, BINS - 1)
    sums = [torch.bincount(place, weights, BINS) for weights in (None, probs.double(), truth.double())]
    return torch.stack([sums[0], sums[1] / sums[0].clamp(min=1), sums[2] / sums[0].clamp(min=1)], 1).tolist()


def _calibration_error(bins: list[list[float]]) -> float:
    """Average how far the mean probability of a bin is from the share that is true, weighted by voxels."""
    number, probability, share = np.array(bins).T
    return float((number * np.abs(probability - share)).sum() / number.sum())


def _print(found: dict[str, dict[str, Any]]) -> None:
    """Print what was found, for the settings that every case has."""
    names = [name for name in SETTINGS if all(name in results for results in found.values())]
    rows: list[list[str | float]] = []
    for name in names:
        cases = [results[name] for results in found.values()]
        means = np.mean([case["dice"] for case in cases], axis=0)
        rows.append([name, *means, float(np.mean(means)), float(np.mean([case["seconds"] for case in cases]))])
    print("\n" + format_table(["setting", *(f"Dice {region}" for region in REGIONS), "mean", "seconds"], rows))
    rows = []
    for name in names:
        cases = [results[name] for results in found.values()]
        if not any(case["wrong"] for case in cases):
            continue
        for measure in cases[0]["caught"]:
            shares = [case["caught"][measure] / case["wrong"] for case in cases if case["wrong"]]
            pooled = sum(case["caught"][measure] for case in cases) / sum(case["wrong"] for case in cases)
            together = _caught_together([case["levels"][measure] for case in cases])
            rows.append([name, measure, together, pooled, float(np.mean(shares)), min(shares)])
    share = f"of all wrong voxels in {SHARE:.0%}"
    print("\n" + format_table(["setting", "measure", f"{share} of all", f"{share} of each", "mean", "least"], rows))
    rows = []
    for name in names:
        errors = [[_calibration_error(case[name]["bins"][r]) for r in range(len(REGIONS))] for case in found.values()]
        rows.append([name, *np.mean(errors, axis=0).tolist()])
    print("\n" + format_table(["calibration error", *REGIONS], rows))
    rows = []
    for name in names:
        values = np.array([[case[name]["uncertainty"], case[name]["dice"]] for case in found.values()])
        pairs = [*values.transpose(2, 1, 0), values.mean(2).T]
        tests = [spearmanr(*pair) for pair in pairs]
        rows.append([name, len(values), *(f"{test.statistic:.2f} (p {test.pvalue:.3f})" for test in tests)])
    print("\n" + format_table(["uncertainty against Dice: Spearman", "n", *REGIONS, "mean"], rows))
    rows = [
        [case, results[name]["wrong"] / results[name]["brain"], *results[name]["dice"], *results[name]["uncertainty"]]
        for name in names
        for case, results in found.items()
        if name in ("default", "flips")
    ]
    header = ["case", "wrong", *(f"Dice {r}" for r in REGIONS), *(f"uncertainty {r}" for r in REGIONS)]
    print("\n" + format_table(header, rows))


if __name__ == "__main__":
    fire.Fire(main, name="python benchmarks/uncertainty.py")
