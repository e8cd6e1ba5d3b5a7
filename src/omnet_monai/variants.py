"""The rows of the paper's ablation table: which networks each one trains, by which overrides, and what it scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["NETWORKS", "TABLE", "VARIANTS", "Variant", "variants_named"]

NETWORKS: dict[str, tuple[str, ...]] = {
    "mc1": ("mc1.json",),
    "refined": ("refined.json",),
    "precise": ("precise.json",),
    "omnet0": ("no_attention.json", "no_transfer.json", "no_curriculum.json"),
    "transfer": ("no_attention.json", "no_curriculum.json"),
    "curriculum": ("no_attention.json", "no_transfer.json"),
    "omnet": ("no_attention.json",),
    "se": ("se.json",),
    "cga": (),
}
"""Networks to train, and the override files that each is trained with on top of train.json."""


@dataclass(frozen=True)
class Variant:
    """
    A row of the table.

    Attributes:
        title: its name there.
        networks: the networks it is made of, keys of ``NETWORKS``, coarse to fine.
        files: override files of its evaluation, where they are not those of its only network.
        settings: config ids that its evaluation sets.
        paper: Dice of WT, TC, ET in the paper (TIP 2020, on its own validation split), ``None`` where not known.
    """

    title: str
    networks: tuple[str, ...]
    files: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    paper: tuple[float, float, float] | None = None

    @property
    def overrides(self) -> tuple[str, ...]:
        """The override files of its evaluation."""
        return self.files or NETWORKS[self.networks[0]]


_CASCADE = ("mc1", "refined", "precise")

# What method each of the paper's names OM-Net^0 and OM-Net^d stands for is reconstructed.
VARIANTS = {
    "mc1": Variant("MC1", ("mc1",), paper=(0.9041, 0.7848, 0.7291)),
    "mc2": Variant("MC2", _CASCADE[:2], ("mc2.json",), paper=(0.9108, 0.7911, 0.7514)),
    "mc3": Variant("MC3", _CASCADE, ("mc3.json",), paper=(0.9108, 0.7911, 0.7953)),
    "omnet0": Variant("OM-Net, neither", ("omnet0",), paper=(0.9040, 0.7941, 0.7996)),
    "transfer": Variant("OM-Net, transfer only", ("transfer",), paper=(0.9111, 0.7993, 0.8026)),
    "curriculum": Variant("OM-Net, curriculum only", ("curriculum",)),
    "omnet": Variant("OM-Net", ("omnet",), paper=(0.9110, 0.7987, 0.8087)),
    "se": Variant("OM-Net+SE", ("se",), paper=(0.9103, 0.8020, 0.8072)),
    "cga": Variant("OM-Net+CGA", ("cga",)),
    # Not rows of the paper's table: they train nothing that the rows above do not.
    "mc3_skip": Variant("MC3, windows skipped", _CASCADE, ("mc3.json",), {"network_def#skip": True}),
    "inner_clusters": Variant("OM-Net+CGA, specks of the core kept", ("cga",), settings={"inner_cluster_volume": 0}),
    "all_clusters": Variant("OM-Net+CGA, all clusters kept", ("cga",), settings={"cluster_volume": 0}),
    "unsure_clusters": Variant("OM-Net+CGA, unsure clusters kept", ("cga",), settings={"cluster_peak": 0}),
    "core_holes": Variant("OM-Net+CGA, holes of the core kept", ("cga",), settings={"fill_core": False}),
    "half_thresholds": Variant("OM-Net+CGA, thresholds of 0.5", ("cga",), settings={"thresholds": [0.5, 0.5, 0.5]}),
    "relabel_edema": Variant("OM-Net+CGA, edema relabeled", ("cga",), settings={"relabel_edema": True}),
    # A tenth of cluster_volume, 500 mm3 by default; cases of a coarser scale set that one.
    "enhancing_volume": Variant(
        "OM-Net+CGA, small ET relabeled", ("cga",), settings={"enhancing_volume": "$0.1 * @cluster_volume"}
    ),
}

TABLE = ("mc1", "mc2", "mc3", "omnet0", "transfer", "curriculum", "omnet", "se", "cga")
"""The rows that are run unless others are asked for."""


def variants_named(names: Sequence[str] = ()) -> dict[str, Variant]:
    """
    Look variants up.

    Args:
        names: keys of ``VARIANTS``; none for those of the paper's table.

    Raises:
        ValueError: for other names.
    """
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ValueError(f"variants must be some of {', '.join(VARIANTS)}, got {', '.join(unknown)}")
    return {name: VARIANTS[name] for name in names or TABLE}
