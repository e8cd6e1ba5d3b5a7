"""Score saved label maps against the truth, case by case, and write the table, the summary and the page of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import Orientation
from monai.utils import string_list_all_gather

from omnet_monai.datalist import read_scored_cases
from omnet_monai.finding import image_name
from omnet_monai.layouts import EXTENSIONS
from omnet_monai.loading import LoadCased, read_label
from omnet_monai.measures import voxel_volume
from omnet_monai.metrics import score_regions
from omnet_monai.page import write_page
from omnet_monai.pictures import save_overlay
from omnet_monai.regions import REGIONS, SCHEMES, regions_from_classes
from omnet_monai.results import CaseScore, Results, read_scores

__all__ = ["EvaluationReport", "find_prediction", "score", "score_case"]

logger = logging.getLogger(__name__)


class EvaluationReport:
    """
    Score the label maps that an evaluation saved, and write ``scores.csv``, ``scores.json``, ``report.html`` and a
    picture of every case beside them. The files themselves are scored, on their own grid: what is shipped.

    A case that cannot be read or scored does not stop the others: the table has its error, and the evaluation ends with
    a ``ValueError``.

    Args:
        cases: all cases of the evaluation, as in a datalist; several processes share the work.
        output_dir: folder of the label maps and of the report.
        compare_to: ``scores.csv`` of another evaluation, to list paired differences; ``None`` for none.
        pictures: whether to draw the cases, which takes about a second each.
        order: the channels of 4-D files, as of :class:`~omnet_monai.loading.LoadCased`.
    """

    def __init__(
        self,
        cases: Sequence[dict[str, Any]],
        output_dir: str | Path,
        compare_to: str | Path | None = None,
        pictures: bool = True,
        order: Sequence[str] | None = None,
    ) -> None:
        self.cases = cases
        self.output_dir = Path(output_dir)
        self.compare_to = compare_to
        _check_comparison(compare_to, cases)
        self.pictures = self.output_dir / "pictures" if pictures else None
        self.order = order
        self.failed: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator, after the handlers that are to run even if a case fails."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)
        engine.add_event_handler(Events.COMPLETED, self.check)

    def write(self, engine: Engine) -> None:
        """Score this process's share of the cases, publish the means among the metrics, write the report."""
        idist.barrier()  # until every process has saved its label maps
        share = self.cases[idist.get_rank() :: idist.get_world_size()]
        mine = [asdict(score_case(case, self.output_dir, self.pictures, "brats2023", self.order)) for case in share]
        gathered = string_list_all_gather([json.dumps(mine)])
        results = Results([CaseScore(**case) for text in gathered for case in json.loads(text)], self.compare_to)
        self.failed = [case.case for case in results.failed]
        engine.state.metrics.update(results.means)
        if idist.get_rank() == 0:
            _write(results, self.output_dir, self.pictures)
            logger.info("\n" + results.text())

    def check(self, engine: Engine) -> None:
        """
        Raises:
            ValueError: if a case was not scored.
        """
        _require_all(self.failed, self.output_dir)


def score(
    predictions: str,
    datalist: str,
    section: str = "test",
    fold: int | None = None,
    scheme: str | None = None,
    output: str | None = None,
    compare_to: str | None = None,
    pictures: bool = True,
) -> None:
    """
    Score label maps that exist already, of this network or any other, as an evaluation does, and write its report.

    Args:
        predictions: folder with a label map per case: ``<case>``, ``<case>_seg`` or ``<case>-seg`` and an extension, on
            the grid of the case's first sequence.
        datalist: JSON file that lists the cases with their labels.
        section: list of that file to score.
        fold: the fold to score, all cases by default.
        scheme: label scheme of the predictions; by default 3 and 4 both mean enhancing.
        output: folder for the report, by default that of the predictions.
        compare_to: ``scores.csv`` of another evaluation, to list paired differences.
        pictures: whether to draw the cases, which takes about a second each.

    Raises:
        ValueError: if a case could not be scored, after the others were.
    """
    if not Path(predictions).is_dir():
        raise ValueError(f"predictions must be a folder of label maps, got {predictions}")
    if scheme is not None and scheme not in SCHEMES:
        raise ValueError(f"label scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    folder = Path(output or predictions)
    drawn = folder / "pictures" if pictures else None
    cases = read_scored_cases(datalist, section, fold)
    _check_comparison(compare_to, cases)
    results = Results([score_case(case, Path(predictions), drawn, scheme) for case in cases], compare_to)
    _write(results, folder, drawn)
    print(results.text())
    _require_all([case.case for case in results.failed], folder)


def score_case(
    case: dict[Any, Any],
    predictions: Path,
    pictures: Path | None = None,
    scheme: str | None = None,
    order: Sequence[str] | None = None,
) -> CaseScore:
    """
    Score the label map of one case, and draw it if asked for.

    Args:
        case: entry of a datalist, with "label".
        predictions: folder of the label maps.
        pictures: folder for ``<case>.png``, ``None`` to draw nothing.
        scheme: label scheme of the label map, a key of ``SCHEMES``; ``None`` if unknown.
        order: the channels of a 4-D file, as of :class:`~omnet_monai.loading.LoadCased`.

    Returns:
        The scores, or the error that kept the case from being scored, which names the case.
    """
    name = _name(case)
    try:
        data = LoadCased(order=order)(case)
        image, truth = data["image"], data["label"]
        file = find_prediction(predictions, name)
        pred = read_label(name, file, scheme, tuple(image.shape[1:]), image.affine.numpy())
        values = _values(pred, truth)
    except (ValueError, OSError, ImportError) as error:  # without ITK, MetaImage alone cannot be read
        text = str(error) or type(error).__name__
        text = text if text.startswith("case ") else f"case {name}: {text}"
        return CaseScore(name, str(case.get("patient", name)), error=text)
    if pictures:
        _draw(name, pictures / f"{name}.png", image, MetaTensor(pred, affine=image.affine), truth)
    return CaseScore(name, str(case.get("patient", name)), values)


def find_prediction(folder: Path, case: str) -> Path:
    """
    Find the label map of a case in a folder.

    Raises:
        ValueError: if there is none or more than one.
    """
    names = [f"{case}{ending}{extension}" for ending in ("", "_seg", "-seg") for extension in EXTENSIONS]
    found = [name for name in names if (folder / name).is_file()]
    if len(found) != 1:
        allowed = f"{case}, {case}_seg or {case}-seg, ending in {', '.join(EXTENSIONS)}"
        raise ValueError(
            f"case {case}: {folder} must hold one prediction ({allowed}), got {', '.join(found) or 'none'}"
        )
    return folder / found[0]


def _name(case: dict[Any, Any]) -> str:
    return str(case.get("case") or image_name(case["image"]))


def _check_comparison(compare_to: str | Path | None, cases: Sequence[dict[str, Any]]) -> None:
    """Read the scores to compare with before hours are spent: a wrong path is an error then."""
    if compare_to is not None and not read_scores(compare_to).keys() & set(map(_name, cases)):
        raise ValueError(f"{compare_to} must have cases in common with what is scored, got none")


def _values(pred: torch.Tensor, truth: MetaTensor) -> dict[str, float]:
    """Score inner classes of shape ``(1, H, W, D)`` and measure them in ml, by the truth's affine."""
    masks = {"truth": regions_from_classes(truth.as_tensor()), "pred": regions_from_classes(pred)}
    voxel = voxel_volume(truth)
    values = score_regions(masks["pred"], masks["truth"], truth.pixdim.tolist(), voxel)
    for source, mask in masks.items():
        volumes = mask.flatten(1).sum(1) * (voxel / 1000)
        values |= {f"{source}_ml_{region}": float(ml) for region, ml in zip(REGIONS, volumes, strict=True)}
    return values


def _draw(case: str, path: Path, *volumes: MetaTensor) -> None:
    """Draw image, prediction and truth; a case without a picture has its scores all the same."""
    turn = Orientation(axcodes="LPS", labels=None)
    try:
        path.unlink(missing_ok=True)  # else one of other label maps might stay
        image, pred, truth = (turn(volume) for volume in volumes)
        save_overlay(image, pred, path, truth=truth, title=case)
    except Exception as error:
        logger.warning(f"case {case}: no picture could be drawn, got {type(error).__name__}: {error}")


def _write(results: Results, folder: Path, pictures: Path | None) -> None:
    results.write(folder)
    write_page(folder / "report.html", results, pictures)


def _require_all(failed: Sequence[str], folder: Path) -> None:
    if failed:
        raise ValueError(f"cases not scored, see {folder / 'scores.csv'}: {', '.join(failed)}")
