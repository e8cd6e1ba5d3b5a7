"""
Score weights on lesion patches of patients that training left out, in the folder of a clone's bundle.

  python ../benchmarks/lesion_patches.py patients CASES/lesion_patches.npz > held_out.json
  python -m monai.bundle run --config_file "['configs/train.json','configs/lesions.json']" --dataset_dir CASES --ckpt_dir trained --run_dir trained/run --lesions_exclude "$(cat held_out.json)"
  python ../benchmarks/lesion_patches.py score CASES/lesion_patches.npz trained/model.pt

Sixty patients tell recipes apart that three brains do not. But a patch lies around a lesion: what is false far from
one, whole brains must tell.
"""  # noqa: E501, commands in one line

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import fire
import numpy as np
import torch
from monai.bundle import ConfigParser

from omnet_monai.demo import bundle_root, inference_config
from omnet_monai.lesions import LesionPatches
from omnet_monai.metrics import dice
from omnet_monai.regions import REGIONS, regions_from_classes
from omnet_monai.report import format_table
from omnet_monai.weights import load_weights

LEAST = 200
"""Voxels of 1 mm3 of a region without which a patch does not count in the mean of that region."""


def patients(patches: str, number: int = 60, seed: int = 7) -> str:
    """
    Draw patients to hold out, and list them in the form of ``--lesions_exclude``, with those it names by default.

    Args:
        patches: the file of lesion patches.
        number: how many to draw.
        seed: of the drawing.
    """
    excluded = _config()["lesions_exclude"]
    return json.dumps([*excluded, *_drawn(_patients(patches), excluded, number, seed)])


def score(patches: str, *weights: str, number: int = 60, seed: int = 7) -> str:
    """
    Tabulate Dice of the patches of the patients held out, by a threshold of 0.5: its mean over patches with at least
    0.2 ml of a region, and that of all patches together.

    Args:
        patches: the file of lesion patches.
        weights: files of networks of inference.json.
        number: how many patients ``patients`` drew.
        seed: the seed that it drew with.
    """
    config = _config()
    everyone = _patients(patches)
    held_out = _drawn(everyone, config["lesions_exclude"], number, seed)
    dataset = LesionPatches(patches, config["lesions"]["spacing"], sorted(set(everyone) - set(held_out)))
    parser = inference_config(bundle_root(), {"search": 0})
    rows: list[list[str | float]] = []
    for path in weights:
        load_weights(parser.get_parsed_content("network").eval(), path)
        found = [_compared(dataset[place], parser) for place in range(len(dataset))]
        means = [_mean_dice(found, region) for region in range(len(REGIONS))]
        pred, truth = (torch.cat([masks.flatten(1) for masks in side], 1) for side in zip(*found, strict=True))
        rows.append([path, *means, *(dice(pred[region], truth[region]) for region in range(len(REGIONS)))])
    return format_table(["weights", *(f"{region} mean" for region in REGIONS), *REGIONS], rows)


@torch.inference_mode()
def _compared(case: dict[str, torch.Tensor], parser: ConfigParser) -> tuple[torch.Tensor, ...]:
    """Return the nested masks of the regions that the network finds in a patch, and the true ones."""
    device, network, inferer = (parser.get_parsed_content(name) for name in ("device", "network", "inferer"))
    probs = inferer(case["image"].float()[None].to(device), network)[0].cpu()
    return (probs > 0.5).cumprod(0).bool(), regions_from_classes(case["label"])


def _mean_dice(found: Sequence[tuple[torch.Tensor, ...]], region: int) -> float:
    """Average over the patches that have enough of a region; NaN if none has."""
    scores = [dice(pred[region], truth[region]) for pred, truth in found if truth[region].sum() >= LEAST]
    return sum(scores) / len(scores) if scores else math.nan


def _config() -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(bundle_root() / "configs" / name) for name in ("train.json", "lesions.json")])
    return parser


def _patients(patches: str) -> list[str]:
    with np.load(patches) as file:
        return sorted(set(file["patient"].astype(str).tolist()))


def _drawn(everyone: list[str], excluded: list[str], number: int, seed: int) -> list[str]:
    others = [patient for patient in everyone if patient not in excluded]
    return [others[place] for place in np.random.default_rng(seed).permutation(len(others))[:number]]


if __name__ == "__main__":
    fire.Fire({"patients": patients, "score": score}, name="python benchmarks/lesion_patches.py")
