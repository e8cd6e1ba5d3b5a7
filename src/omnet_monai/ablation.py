"""Train and score the rows of the paper's ablation table under one budget, and lay them beside the paper's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, run

from omnet_monai import __version__
from omnet_monai.budget import train_once
from omnet_monai.comparison import Comparison, Row
from omnet_monai.cost import machine
from omnet_monai.datalist import read_cases, read_scored_cases
from omnet_monai.demo import bundle_root, require_values
from omnet_monai.files import require_same, sha256, whole_file
from omnet_monai.report import write_csv
from omnet_monai.results import read_dice
from omnet_monai.variants import NETWORKS, VARIANTS, variants_named

__all__ = ["ablate"]

SET_BY_ROW = ("seed", "fold", "datalist", "datalist_key", "ckpt_dir", "run_dir", "output_dir", "checkpoint_path")


def ablate(
    directory: str,
    datalist: str,
    variants: str | Sequence[str] = (),
    seeds: int | Sequence[int] = 0,
    folds: int | Sequence[int] = (),
    section: str = "test",
    reference: str = "",
    equal_time: bool = False,
    recipe: str | Sequence[str] = (),
    bundle: str = "",
    **overrides: Any,
) -> None:
    """
    Run variants of OM-Net, each by the bundle's own training and evaluation, and print the paper's table of them.

    Every network is trained for equally many steps, without validation: the last weights are scored. Cascades share the
    networks they have in common. Interrupted, the same command goes on: finished rows are kept in ``rows.json``, and an
    unfinished training is taken up by its own checkpoint. ``table.md`` and ``table.csv``, of the rows that the command
    asks for, are written after each one.

    Args:
        directory: folder for weights, label maps, reports and the table.
        datalist: JSON file that lists the cases with their labels.
        variants: rows to run, those of the paper's table by default.
        seeds: seeds of the training; each row is run with each.
        folds: folds of the training section; each row is trained without one and scored on it. By default there is one
            training, on the whole section.
        section: list that is scored where no folds are named.
        reference: row that differences are taken to, "omnet" by default or, if that is not run, the last one.
        equal_time: run each row again with as many epochs as fit into the time that the reference's training took.
        recipe: further override files on top of train.json, such as demo.json.
        bundle: root of the bundle, by default the current folder if it is one, or that beside this package.
        overrides: config ids to override in training and evaluation, as for ``monai.bundle run``.

    Raises:
        ValueError: for unknown variants or a reference that is not run, a section or fold without labeled cases, and a
            directory with rows of other settings.
    """
    rows = variants_named(_listed(variants))
    reference = reference or ("omnet" if "omnet" in rows else list(rows)[-1])
    if reference not in rows:
        raise ValueError(f"reference must be one of the variants {', '.join(rows)}, got {reference!r}")
    sources = Path(directory), bundle_root(bundle), Path(datalist)
    ablation = _Ablation(*sources, section, tuple(_listed(recipe)), overrides)
    places = [(fold, seed) for seed in _listed(seeds) for fold in (_listed(folds) or [None])]
    for fold, _ in places:
        ablation.check_cases(fold)
    ablation.open()
    order = [reference, *(name for name in rows if name != reference)]  # its time is the others' budget
    budgets = ("steps", "time") if equal_time else ("steps",)
    runs = [(n, b, *place) for place in places for b in budgets for n in order if (n, b) != (reference, "time")]
    for name, budget, fold, seed in runs:
        ablation.run_row(name, budget, fold, seed, reference)
        ablation.write_table(runs, reference)
    print(ablation.write_table(runs, reference))


@dataclass
class _Ablation:
    """One folder of rows under one budget."""

    out: Path
    root: Path
    datalist: Path
    section: str
    recipe: tuple[str, ...]
    overrides: dict[str, Any]

    def check_cases(self, fold: int | None) -> None:
        """Read the cases to train on and to score, for their errors."""
        read_cases(self.datalist, "training", fold)
        self.patients(fold)

    def patients(self, fold: int | None) -> dict[str, str]:
        """Tell the patients of the cases to score."""
        cases = read_scored_cases(self.datalist, self.section if fold is None else "training", fold)
        return {case["case"]: case["patient"] for case in cases if "patient" in case}

    def open(self) -> None:
        """
        Take up the rows that are there.

        Raises:
            ValueError: if they are of other settings, and for overrides that are no ids or that each run sets itself.
        """
        parser = ConfigParser()
        parser.read_config(self.configs("train.json", *self.recipe, "evaluate.json"))
        wrong = [name for name in self.overrides if name in SET_BY_ROW or name not in parser]
        if wrong:
            rule = f"overrides must be ids of train.json or evaluate.json other than {', '.join(SET_BY_ROW)}"
            raise ValueError(f"{rule}, got {', '.join(wrong)}")
        require_values(parser, self.overrides)
        parser.update(self.overrides)
        self.epochs = int(parser.get_parsed_content("train#trainer#max_epochs"))
        self.steps = int(parser.get_parsed_content("steps_per_epoch"))
        self.settings = {
            "datalist_sha256": sha256(self.datalist),
            "section": self.section,
            "recipe": list(self.recipe),
            "configs_sha256": sha256(*sorted((self.root / "configs").glob("*.json")), *self.configs(*self.recipe)),
            "version": __version__,
            "overrides": {key: str(value) for key, value in self.overrides.items()},
        }
        file = self.out / "rows.json"
        content: dict[str, Any] = {"settings": self.settings, "rows": []}
        content |= json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        require_same(file, content["settings"], self.settings)
        self.rows = [Row(**row) for row in content["rows"]]
        self.keep()  # the settings, before anything is trained by them

    def run_row(self, name: str, budget: str, fold: int | None, seed: int, reference: str) -> None:
        """Train what is not trained, and score, unless that is done."""
        if self.find(name, budget, fold, seed, reference):
            return
        variant, place, epochs = VARIANTS[name], self.place(fold), self.epochs
        if budget == "time":
            (own,), (other,) = (self.find(n, "steps", fold, seed, reference) for n in (name, reference))
            epochs = max(1, int(self.epochs * other.seconds / own.seconds))
        print(f"\n=== {variant.title}, {budget}, {place}, seed {seed}: {epochs} epochs", flush=True)
        if budget == "time" and epochs == self.epochs:  # the very training that is there
            self.keep(replace(own, budget="time", reference=reference))
            return
        trained = [self.train(network, epochs, fold, seed) for network in variant.networks]
        weights = [str(folder / "model.pt") for folder, _ in trained]
        out = self.out / "scored" / f"{name}-{place}-seed{seed}-{epochs}epochs"
        settings = self.common(fold, seed) | variant.settings
        settings |= {"checkpoint_path": weights if len(weights) > 1 else weights[0], "output_dir": str(out)}
        settings |= {"datalist_key": self.section if fold is None else "training"}
        files = ("train.json", *self.recipe, "evaluate.json", *variant.overrides, "cost.json")
        run(config_file=self.configs(*files), **settings)
        row = Row(
            variant=name,
            budget=budget,
            place=place,
            seed=seed,
            epochs=epochs,
            seconds=sum(seconds for _, seconds in trained),
            cost=json.loads((out / "cost.json").read_text(encoding="utf-8")),
            dice=read_dice(out / "scores.csv"),
            patients=self.patients(fold),
            reference=reference if budget == "time" else "",
        )
        self.keep(row)

    def keep(self, *rows: Row) -> None:
        """Add rows to those that are there."""
        self.rows += rows
        content = {"settings": self.settings, "rows": [asdict(row) for row in self.rows]}
        with whole_file(self.out / "rows.json") as part:
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def train(self, network: str, epochs: int, fold: int | None, seed: int) -> tuple[Path, float]:
        """Train one network unless that is done, and return its folder and the seconds that it took."""
        place = "all" if fold is None else f"without_fold{fold}"
        folder = self.out / "networks" / f"{network}-{place}-seed{seed}-{epochs}epochs"
        files = self.configs("train.json", *self.recipe, *NETWORKS[network])
        return folder, train_once(folder, epochs, files, self.common(fold, seed))

    def write_table(self, runs: Sequence[tuple[str, str, int | None, int]], reference: str) -> str:
        """Write the table of those runs that are there, and return it."""
        rows = [row for run in runs for row in self.find(*run, reference)]
        comparison = Comparison(rows, reference)
        write_csv(self.out / "table.csv", *comparison.table())
        text = comparison.markdown(self.caption(comparison))
        with whole_file(self.out / "table.md") as part:
            part.write_text(text, encoding="utf-8")
        return text

    def caption(self, comparison: Comparison) -> str:
        """Tell budget, data and machine."""
        rows = comparison.rows
        seeds, places = (sorted({str(getattr(row, key)) for row in rows}) for key in ("seed", "place"))
        cases = {case for row in rows for case in row.dice}
        recipe = " and ".join(["train.json", *self.recipe])
        changes = "".join(f", {key} {value}" for key, value in self.overrides.items())
        timed = any(row.budget == "time" for row in rows)
        equal = "; at equal time as many epochs as fit into the training of the reference" if timed else ""
        interval = ", an interval the bootstrap's over patients" if comparison.intervals else ""
        return (
            f"Budget: {self.epochs * self.steps:,} optimizer steps for each network ({self.epochs} epochs), by"
            f" {recipe}{changes}, with seeds {', '.join(seeds)}{equal}. Data: {len(read_cases(self.datalist))} cases in"
            f" the training section, {len(cases)} cases scored ({', '.join(places)}). ± is the standard deviation over"
            f" seeds{interval}. One multiply-add is two FLOP; seconds are inside the network. Machine: {machine()}."
        )

    def place(self, fold: int | None) -> str:
        return self.section if fold is None else f"fold{fold}"

    def configs(self, *names: str) -> list[str]:
        return [str(self.root / "configs" / name) for name in names]

    def common(self, fold: int | None, seed: int) -> dict[str, Any]:
        return {
            "bundle_root": str(self.root),
            "meta_file": str(self.root / "configs" / "metadata.json"),
            "logging_file": str(self.root / "configs" / "logging.conf"),
            "datalist": str(self.datalist),
            "cache_dir": str(self.out / "cache"),  # one for all networks
            "fold": fold,
            "seed": seed,
            "search": 0,  # networks are compared on every window
            **self.overrides,
        }

    def find(self, name: str, budget: str, fold: int | None, seed: int, reference: str) -> list[Row]:
        """List the row of these, if it is finished; one of equal time counts beside the same reference alone."""
        wanted = (name, budget, self.place(fold), seed, reference if budget == "time" else "")
        return [row for row in self.rows if (row.variant, row.budget, row.place, row.seed, row.reference) == wanted]


def _listed(value: Any) -> list[Any]:
    """Make a list of what the command line gives: one value, or several with commas between."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return list(value) if isinstance(value, Sequence) else [value]
