"""Who races in race.py, by which settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnet_monai.variants import NETWORKS, VARIANTS

SEGRESNET, TIMED = (str(Path(__file__).resolve().with_name(name)) for name in ("segresnet.json", "timed.json"))


@dataclass(frozen=True)
class Entrant:
    """
    One that races.

    Attributes:
        title: its name in the table.
        trials: settings to choose from, those it was published with first.
        networks: override files that each of its networks is trained with.
        scoring: override files of its evaluation.
        warmup: share of the time in which its learning rate rises, as in its own configs.
    """

    title: str
    trials: tuple[dict[str, Any], ...]
    networks: tuple[tuple[str, ...], ...] = ((),)
    scoring: tuple[str, ...] = ()
    warmup: float = 0.0


RATES: tuple[dict[str, Any], ...] = ({}, {"learning_rate": 0.0005}, {"learning_rate": 0.002})

ENTRANTS = {
    "omnet": Entrant("OM-Net+CGA", RATES, warmup=1 / 70),
    "mc3": Entrant("MC3", RATES, tuple(NETWORKS[n] for n in VARIANTS["mc3"].networks), VARIANTS["mc3"].files, 1 / 70),
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
