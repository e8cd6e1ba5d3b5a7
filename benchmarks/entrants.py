"""Who races in race.py, by which settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnet_monai.variants import NETWORKS, VARIANTS

SEGRESNET = str(Path(__file__).resolve().with_name("segresnet.json"))


@dataclass(frozen=True)
class Entrant:
    """
    One that races.

    Attributes:
        title: its name in the table.
        trials: settings to choose from, those it was published with first.
        networks: override files that each of its networks is trained with.
        scoring: override files of its evaluation.
        stages: how long an epoch takes in the mean, in epochs of all tasks.
    """

    title: str
    trials: tuple[dict[str, Any], ...]
    networks: tuple[tuple[str, ...], ...] = ((),)
    scoring: tuple[str, ...] = ()
    stages: float = 1.0


RATES = ({}, {"learning_rate": 0.0005}, {"learning_rate": 0.002})

ENTRANTS = {
    # The curriculum trains one of three tasks in the first tenth of the epochs, and two in the second.
    "omnet": Entrant("OM-Net+CGA", RATES, stages=0.9),
    "mc3": Entrant("MC3", RATES, tuple(NETWORKS[name] for name in VARIANTS["mc3"].networks), VARIANTS["mc3"].files),
    "segresnet": Entrant(
        "SegResNet",
        (
            {},
            {"learning_rate": 0.001},
            {"learning_rate": 0.001, "crop_size": [80, 80, 80], "cases_per_step": 2},
        ),
        ((SEGRESNET,),),
        (SEGRESNET,),
    ),
    "nnunet": Entrant("nnU-Net", ({}, {"initial_lr": 0.003}, {"initial_lr": 0.03})),
}
