"""The cases of one segmentation: which are left to do, and a record of what came of each."""

from __future__ import annotations

import gc
import json
import time
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation

from omnet_monai.checks import check_image
from omnet_monai.datalist import read_cases
from omnet_monai.files import whole_file
from omnet_monai.images import file_states
from omnet_monai.measures import MEASURES, measure
from omnet_monai.pictures import save_segmentation
from omnet_monai.regions import REGIONS, SEQUENCES, classes_from_codes, regions_from_classes
from omnet_monai.results import milliliters
from omnet_monai.sampling import ReadableCases, first_cause
from omnet_monai.uncertainty import region_uncertainty

__all__ = ["COLUMNS", "NOTICE", "CaseRecord", "RecordHandler", "RecordedCases", "Records", "read_record", "state_of"]

NOTICE = (
    "Research use only, not a medical device. The weights of the bundle are for non-commercial research only, by the"
    " terms in docs/data_license.txt."
)

COLUMNS = [*MEASURES, *(f"uncertainty_{region}" for region in REGIONS)]
"""Names of the numbers of a case."""


@dataclass(frozen=True)
class CaseRecord:
    """
    What came of one case.

    Attributes:
        case: its name.
        image: its files as they were given.
        error: why there is no label map, empty if there is one.
        warnings: what a reader of the label map should know.
        measures: volumes, numbers of lesions, diameters and uncertainties, by the names of ``COLUMNS``.
        seconds: time since the case before was done, reading included.
        settings: what the label map depends on beside the images.
        notice: terms of use.
    """

    case: str
    image: Any
    error: str = ""
    warnings: list[str] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    notice: str = NOTICE

    def line(self) -> str:
        """Say in a line what came of the case, and in one more for each warning."""
        if self.error:
            return f"failed: {self.error}"
        volumes = ", ".join(f"{region} {milliliters(self.measures[f'ml_{region}'])} ml" for region in REGIONS)
        return "\n    ".join([f"{volumes} in {self.seconds:.0f} s", *(f"warning: {text}" for text in self.warnings)])


def read_record(path: Path) -> CaseRecord | None:
    """Read the record of a case; ``None`` if there is none that can be read."""
    try:
        return CaseRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def state_of(case: dict[str, Any]) -> dict[str, Any]:
    """Tell the order of a case's channels, if it was stated, and the size and time of change of each of its files."""
    return {"order": case.get("order"), "files": file_states(case["image"])}


class Records:
    """
    The cases of a datalist's section "test", and beside it the folder ``records`` with a file for each that is done.

    A record is written after everything else of its case, so one without an error says that the rest is there.

    Args:
        datalist: JSON file, which may have "settings" to note in each record.

    Attributes:
        current: the case in the network or behind it, which is the one that failed where the evaluator does.
    """

    def __init__(self, datalist: str | Path) -> None:
        self.folder, self.pictures = Path(datalist).parent / "records", Path(datalist).parent / "pictures"
        self.cases = read_cases(datalist, "test")
        self.settings = json.loads(Path(datalist).read_text(encoding="utf-8")).get("settings", {})
        self.current: dict[str, Any] | None = None
        self.start, self.done_before = time.monotonic(), self._done()

    def left(self) -> list[dict[str, Any]]:
        """Return the cases without a record in this process's share, every n-th of n processes."""
        share = self.cases[idist.get_rank() :: idist.get_world_size()]
        return [case for case in share if not self.path(case["case"]).is_file()]

    def path(self, case: str) -> Path:
        """Return the file of a case's record."""
        return self.folder / f"{case}.json"

    def fail(self, case: dict[str, Any], error: BaseException) -> None:
        """Record a case that failed, with the error in one line."""
        lines = [line for line in str(first_cause(error)).splitlines() if line.strip()] or [type(error).__name__]
        # MONAI's writer puts a traceback into the message, the error itself comes last.
        line = lines[-1 if any(line.startswith("Traceback") for line in lines) else 0]
        self.write(case, error=line.removeprefix(f"case {case['case']}: "))  # its name stands before

    def write(self, case: dict[str, Any], **fields: Any) -> None:
        """Write the record of a case whole or not at all, and print a line about it and the time that is left."""
        record = CaseRecord(case["case"], case["image"], settings=self.settings | state_of(case), **fields)
        with whole_file(self.path(record.case)) as part:
            part.write_text(json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        done, total = self._done(), len(self.cases)
        pace = (time.monotonic() - self.start) / max(done - self.done_before, 1)
        left = f", about {_duration(pace * (total - done))} left" if done < total else ""
        with suppress(OSError, ValueError):  # a pipe whose reader has gone, an encoding without the letters
            print(f"[{done}/{total}{left}] {record.case}: {record.line()}", flush=True)

    def _done(self) -> int:
        return sum(self.path(case["case"]).is_file() for case in self.cases)


class RecordedCases(ReadableCases):
    """
    The cases that are left to segment, each read, checked and prepared; of one that cannot be read the record says why.

    Args:
        records: where the cases come from and the failures go.
        transform: what prepares a case; the first transform reads it.
        strict: take a case for failed if there is anything to warn of.
    """

    def __init__(self, records: Records, transform: Compose, strict: bool = False) -> None:
        super().__init__(records.left(), self.read)
        self.records, self.preprocessing, self.strict = records, transform, strict

    def read(self, case: dict[str, Any]) -> dict[str, Any]:
        """Read, check and prepare one case; what there is to warn of goes along under "warnings", a list as JSON."""
        if case.get("problems"):
            raise ValueError(case["problems"])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            data: dict[str, Any] = self.preprocessing(case, end=1)
        order = case.get("order") or SEQUENCES  # of the channels of a 4-D file
        found = [f"files: {warning.message}" for warning in caught] + check_image(data["image"], order)
        if found and self.strict:
            raise ValueError("; ".join(found))
        return {**self.preprocessing(data, start=1), "warnings": json.dumps(found)}

    def leave_out(self, case: dict[str, Any], error: BaseException) -> None:
        """Record why a case could not be read."""
        self.records.fail(case, error)


class RecordHandler:
    """
    Measure, draw and record each case once its label map is written.

    Args:
        records: where the records go.
        scheme: label scheme of the label maps, a key of ``SCHEMES``.
    """

    def __init__(self, records: Records, scheme: str = "brats2023") -> None:
        self.records, self.scheme = records, scheme
        self.since = time.monotonic()

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.ITERATION_STARTED, self.begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.finish)

    def begin(self, engine: Engine) -> None:
        """Note which case it is."""
        name = engine.state.batch["case"][0]  # type: ignore[index]  # of a batch of one
        (self.records.current,) = (case for case in self.records.cases if case["case"] == name)

    def finish(self, engine: Engine) -> None:
        """Measure the label map, draw it, and write the record."""
        (batch,), (output,) = engine.state.batch, engine.state.output  # type: ignore[misc]  # decollated
        image, pred, turn = output["image"], output["pred"], Orientation(axcodes="LPS", labels=None)
        label = MetaTensor(classes_from_codes(pred.as_tensor(), self.scheme), affine=pred.affine)
        measures = measure(label)
        measures |= region_uncertainty(output["probs"].as_tensor().cpu(), regions_from_classes(label.as_tensor().cpu()))
        case = self.records.current or {}
        without = f", without {image.meta['missing']}" if image.meta["missing"] else ""
        title = f"{case['case']}{without}\n" + NOTICE.replace(". ", ".\n", 1)  # as wide as the picture
        upright, classes, doubt = (turn(each.cpu()) for each in (image, label, output["doubt"]))
        save_segmentation(upright, classes, doubt, self.records.pictures / f"{case['case']}.png", title)
        now = time.monotonic()
        self.records.write(case, warnings=json.loads(batch["warnings"]), measures=measures, seconds=now - self.since)
        self.since, self.records.current = now, None
        # Or its volumes would stay while the next case is read, and its picture's objects scatter over the heap.
        engine.state.batch = engine.state.output = None
        gc.collect()


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
