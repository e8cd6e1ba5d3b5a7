"""What the absence of a sequence costs: every held-out case is scored with each sequence taken away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("missing_sequences")


def test_each_sequence_is_taken_away_in_turn_and_what_that_loses_is_told(
    script: ModuleType, small_bundle: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A network that finds half of the tumor whole, and a tenth less for each place of the sequence in the list.
    seen: list[tuple[int, int]] = []

    def run(datalist: str, fold: int, output_dir: str, **settings: Any) -> None:
        for case in json.loads(Path(datalist).read_text())["training"]:
            lost = [place for place, file in enumerate(case["image"], start=1) if file is None]
            seen.append((fold, sum(lost)))
            found[f"{output_dir}/scores.csv"] = {case["case"]: [0.5 - 0.1 * sum(lost)] * 3}
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        (Path(output_dir) / "scores.csv").touch()

    found: dict[str, dict[str, list[float]]] = {}
    monkeypatch.setattr(script, "run", run)
    monkeypatch.setattr(script, "read_dice", lambda path: found[str(path)])
    weights = str(small_bundle / "models" / "model.pt")
    script.main(str(phantoms / "datalist.json"), str(tmp_path), weights, weights)
    assert seen == [(fold, lost) for lost in range(5) for fold in (0, 1)]  # a case in each fold
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2] == "| none | 0.500/0.500/0.500 | 0.000/0.000/0.000 |"
    assert lines[6] == "| flair | 0.100/0.100/0.100 | 0.400/0.400/0.400 |"
    script.main(str(phantoms / "datalist.json"), str(tmp_path), weights, weights)
    assert len(seen) == 10  # nothing is scored again,
    found[str(tmp_path / "t2-fold1" / "scores.csv")].clear()
    script.main(str(phantoms / "datalist.json"), str(tmp_path), weights, weights)
    assert seen[10:] == [(1, 3)]  # but a fold whose case failed
    with pytest.raises(ValueError, match="same settings to be continued, differs in weights_sha256"):
        script.main(str(phantoms / "datalist.json"), str(tmp_path), weights)
