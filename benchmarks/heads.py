"""
Score what each task of a network tells of the regions, on cases that it has not seen, in the folder of a clone.

  python benchmarks/heads.py DATALIST FOLD0/model.pt FOLD1/model.pt FOLD2/model.pt

A network takes WT from its coarse task, TC from the refined one, ET from the precise one. But the coarse task tells all
three, and the refined one ET too. Every window runs. The first weights were trained with fold 0 held out, and so on;
``--folds 0,2`` names other folds for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import fire
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose
from torch import nn

from omnet_monai.datalist import read_scored_cases
from omnet_monai.demo import bundle_root, inference_config
from omnet_monai.metrics import dice
from omnet_monai.regions import REGIONS, TASKS, regions_from_classes
from omnet_monai.report import format_table
from omnet_monai.transforms import LabelsToRegionsd
from omnet_monai.weights import load_weights


class AllTasks(nn.Module):
    """A network that returns the probabilities of all classes of all its tasks, one after the other."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map sequences ``(B, C, *spatial)`` to probabilities ``(B, classes of all tasks, *spatial)``."""
        heads: Any = self.network.heads
        logits: list[torch.Tensor] = []
        hooks = [head.register_forward_hook(lambda *args: logits.append(args[-1])) for head in heads]
        self.network(x)
        for hook in hooks:
            hook.remove()
        return torch.cat([scores.float().softmax(1) for scores in logits], 1)


def main(datalist: str, *weights: str, folds: Sequence[int] | int | None = None, **overrides: Any) -> None:
    """
    Print Dice of every case, and the means.

    Args:
        datalist: JSON file with the folds.
        weights: a file for each fold, of networks with all three tasks.
        folds: of the weights, by default 0, 1, ...
        overrides: ids of inference.json to override.

    Raises:
        ValueError: if there are not as many folds as weights.
    """
    held_out = range(len(weights)) if folds is None else (folds,) if isinstance(folds, int) else folds
    if len(held_out) != len(weights):
        raise ValueError(f"each of {len(weights)} files of weights must have a fold, got {len(held_out)} folds")
    found: dict[str, list[list[float]]] = {}
    for path, fold in zip(weights, held_out, strict=True):
        parser = inference_config(bundle_root(), overrides | {"search": 0})  # which looks for WT in the first class
        load_weights(parser.get_parsed_content("network").eval(), path)
        for case in read_scored_cases(datalist, "training", fold):
            for name, scores in _score(parser, case):
                print(case["case"], name, " / ".join(f"{score:.3f}" for score in scores), flush=True)
                found.setdefault(name, []).append(scores)
    rows: list[list[str | float]] = [[name, *np.mean(scores, 0).tolist()] for name, scores in found.items()]
    print("\n" + format_table(["mean", *REGIONS], rows))


@torch.no_grad()
def _score(parser: ConfigParser, case: dict[str, Any]) -> Iterator[tuple[str, list[float]]]:
    """Segment a case once, and yield Dice of WT, TC and ET for each choice of tasks."""
    prepare, network = (parser.get_parsed_content(name) for name in ("preprocessing", "network"))
    *refine, _ = parser.get_parsed_content("postprocessing").transforms  # all but saving
    finish = Compose([*refine, LabelsToRegionsd("pred", parser.get_parsed_content("label_scheme"))])
    data = prepare(case)
    truth = regions_from_classes(data["label"].as_tensor())
    image = data["image"].as_tensor()[None].to(parser.get_parsed_content("device"))
    told = parser.get_parsed_content("inferer")(image, AllTasks(network))[0].cpu()
    for name, probs in _choices(told.split(parser["network_def"]["class_counts"])):
        masks = finish(data | {"pred": MetaTensor(probs, affine=data["image"].affine)})["pred"]
        yield name, [dice(masks[region], truth[region]) for region in range(len(REGIONS))]


def _choices(classes: Sequence[torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the probabilities of the regions, each from one of the tasks that tell it, and from the mean of these."""
    told = [
        [probs[task.channels_of(region)].sum(0) for task, probs in zip(TASKS[: last + 1], classes, strict=False)]
        for last, region in enumerate(REGIONS)
    ]
    yield "each from its own task", torch.stack([tasks[-1] for tasks in told])
    yield "TC and ET from refined", torch.stack([tasks[min(1, place)] for place, tasks in enumerate(told)])
    yield "all from coarse", torch.stack([tasks[0] for tasks in told])
    yield "the mean of those that tell it", torch.stack([torch.stack(tasks).mean(0) for tasks in told])


if __name__ == "__main__":
    fire.Fire(main, name="python benchmarks/heads.py")
