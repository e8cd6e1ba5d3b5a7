"""Segment the cases a person has: find them, run the bundle's inference workflow on them, sum up what came of each."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow

from omnet_monai import __version__
from omnet_monai.demo import bundle_root, require_values
from omnet_monai.distributed import torchrun_processes, wait_for_all
from omnet_monai.files import sha256
from omnet_monai.folders import files_below, left_aside
from omnet_monai.images import find_images
from omnet_monai.outputs import POSTFIXES, clear_case, prepare_output, require_apart, sole_run, sum_up
from omnet_monai.regions import SCHEMES, SEQUENCES
from omnet_monai.sampling import first_cause
from omnet_monai.segmentation import NOTICE, Records

__all__ = ["require_switches", "segment"]

CONFIGS = ("inference.json", "segment.json")

MANAGED = ("datalist", "dataset", "dataset_dir", "records", "output_dir", "num_workers")
"""Ids of the configs that segment sets by itself."""

FLIPS = {"flips": [0, 1, 2]}
PRESETS: dict[str, dict[str, Any]] = {"fast": {"overlap": 0.0}, "accurate": {"overlap": 0.5, "search": 0, **FLIPS}}


def segment(
    *cases: str,
    output: str,
    t1: str | None = None,
    t1c: str | None = None,
    t2: str | None = None,
    flair: str | None = None,
    order: Sequence[str] | str | None = None,
    allow_missing: bool = False,
    scheme: str = "brats2023",
    naming: str = "bundle",
    fast: bool = False,
    accurate: bool = False,
    tta: bool = False,
    probabilities: bool = False,
    device: str | None = None,
    workers: int = 0,
    strict: bool = False,
    resume: bool = False,
    bundle: str = "",
    **overrides: Any,
) -> None:
    """
    Segment cases, each on the grid of its first sequence. Research use only, not a medical device.

    The output holds a label map per case, ``<case>_seg.nii.gz``, and a row for each, with volumes, numbers of lesions
    and diameters, in ``segmentation.csv`` and ``segmentation.json``. ``index.html`` shows a picture of each. A map of
    how unsure the region probabilities are is ``uncertainty/<case>_uncertainty.nii.gz``.

    Args:
        cases: folders of a case or of many, in any known layout, or 4-D files; label maps beside them are ignored.
        output: folder for the results.
        t1: file of the T1 of a single case, which goes with the next three.
        t1c: file of its contrast-enhanced T1.
        t2: file of its T2.
        flair: file of its FLAIR.
        order: the channels of 4-D files, such as ``flair,t1,t1c,t2``; needed where no layout tells it.
        allow_missing: segment cases that lack sequences, as the weights learned to, at a loss; the finding "missing"
            tells what to expect.
        scheme: label scheme of the codes to write, brats2015, brats2017, brats2023 or msd.
        naming: "bundle" for ``<case>_seg.nii.gz``, "brats" for ``<case>.nii.gz`` as challenges take it.
        fast: windows that do not overlap.
        accurate: windows that overlap by a half, where the default is an eighth, each of them run, and eight mirrored
            passes.
        tta: eight mirrored passes, whose mean is taken.
        probabilities: save the probabilities of WT, TC and ET, ``probabilities/<case>_probabilities.nii.gz``.
        device: "cpu", "cuda" or "cuda:1"; by default the first GPU, or the CPU where there is none.
        workers: processes that read cases ahead.
        strict: take a case for failed if its images give anything to warn of, such as a wrong order of sequences.
        resume: leave out cases that an earlier run has finished, which must have had the same settings.
        bundle: root of the bundle, by default the current folder if it is one, or that beside this package.
        overrides: ids of inference.json to override, such as ``checkpoint_path``.

    Raises:
        ValueError: for arguments that fit no case, settings or weights that fit no network, an output that is not
            segment's own, holds images of the cases, is in use by another run or to resume with other settings, and if
            a case failed, after all others were segmented.
    """
    root, out = bundle_root(bundle), Path(os.path.abspath(output))
    _check_ids(root, overrides)
    settings = {
        **_preset(fast, accurate),
        **(FLIPS if tta else {}),
        "save_probabilities": probabilities,
        "label_scheme": _one_of("scheme", scheme, SCHEMES),
        "strict": strict,
        "output_postfix": POSTFIXES[_one_of("naming", naming, POSTFIXES)],
        **overrides,
    }
    places = {"output_dir": str(out), "num_workers": workers, **_device(device)}
    single = {sequence: file for sequence, file in zip(SEQUENCES, (t1, t1c, t2, flair), strict=True) if file}
    found = find_images([str(case) for case in cases], single, order, allow_missing)
    require_apart(out, found)
    failed: list[str] = []
    with _quiet():
        _try_out(root, found, settings | places)
    with torchrun_processes() as first, sole_run(out) if first else nullcontext():
        if first:
            finished = prepare_output(out, found, settings | _versions(root, overrides), resume)
            count = f"{len(found)}, {finished} finished before" if resume else len(found)
            with suppress(OSError):  # a pipe whose reader has gone
                print(NOTICE, f"cases:      {count}", *_left_aside(cases), sep="\n", flush=True)
        wait_for_all()
        try:
            with _quiet():
                _run_all(root, out, settings | places)
            wait_for_all()
        finally:
            if first:
                failed = sum_up(out, found)
    if failed:
        raise ValueError(f"{len(failed)} of {len(found)} cases failed, see {out / 'index.html'}")
    if first:
        print(f"label maps: {out}\noverview:   {out / 'index.html'}")


def require_switches(options: dict[str, Any]) -> None:
    """Refuse switches that are not on or off: "--fast A B" makes A the value of the switch instead of a case."""
    for name, value in options.items():
        if not isinstance(value, bool):
            rule = "with a capital letter, and cases come before switches"
            raise ValueError(f"--{name} must be True or False, got {value!r}: {rule}")


def _check_ids(root: Path, overrides: dict[str, Any]) -> None:
    """Refuse options that are neither of the verb nor of its configs: a slip of the keyboard would go unnoticed."""
    parser = ConfigParser()
    parser.read_config([root / "configs" / name for name in CONFIGS])
    defaults = {name: parser.get(name.replace("::", "#")) for name in overrides}
    require_switches({name: overrides[name] for name, default in defaults.items() if isinstance(default, bool)})
    require_values(parser, overrides)
    unknown = [name for name in overrides if name.replace("::", "#").split("#")[0] not in parser]
    if unknown:
        raise ValueError(f"options must be those of segment or ids of {', '.join(CONFIGS)}, got {', '.join(unknown)}")
    managed = [name for name in overrides if name in MANAGED]
    if managed:
        raise ValueError(f"{', '.join(MANAGED)} are segment's own: name CASES, --output and --workers instead")


def _left_aside(cases: Sequence[str]) -> list[str]:
    """Tell what in the folders that were named is no case: a patient may be among it."""
    folders = [path for path in (Path(os.path.abspath(str(case))) for case in cases) if path.is_dir()]
    return [f"left aside: {line}" for folder in folders for line in left_aside(folder, files_below(folder))]


def _versions(root: Path, overrides: dict[str, Any]) -> dict[str, str]:
    """Tell code, configs and weights apart, these where they are in a file: results of others are not taken up."""
    configs = sha256(*(root / "configs" / name for name in CONFIGS))
    given = overrides.get("checkpoint_path", root / "models" / "model.pt")
    paths = [Path(given)] if isinstance(given, str | Path) else [Path(path) for path in given]  # of a cascade a list
    weights = sha256(*(path for path in paths if path.is_file()))
    return {"version": __version__, "configs_sha256": configs, "weights_sha256": weights}


def _preset(fast: bool, accurate: bool) -> dict[str, Any]:
    if fast and accurate:
        raise ValueError("--fast and --accurate exclude each other, got both")
    return PRESETS["fast"] if fast else PRESETS["accurate"] if accurate else {}


def _one_of(name: str, value: str, known: Any) -> str:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value


def _device(name: str | None) -> dict[str, str]:
    """Override the device by the one named, if it is here; of several processes each takes a GPU of its own."""
    if name is None:
        rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        return {"device": f"$torch.device('cuda:{rank % gpus}')"} if gpus > 1 else {}
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be cpu, cuda or cuda:1, and here, got {name!r}") from error
    return {"device": f"$torch.device({name!r})"}


def _try_out(root: Path, cases: Sequence[dict[str, Any]], overrides: dict[str, Any]) -> None:
    """Build the inference workflow and load its weights elsewhere, before anything is cleared for it."""
    with TemporaryDirectory() as folder:
        prepare_output(Path(folder), cases, overrides, resume=False)
        workflow = _workflow(root, overrides | {"output_dir": folder})
        try:
            workflow.initialize()
            workflow.parser.get_parsed_content("evaluator").fire_event(Events.STARTED)
        except Exception as error:
            raise first_cause(error) from error


def _workflow(root: Path, overrides: dict[str, Any]) -> ConfigWorkflow:
    files = [str(root / "configs" / name) for name in CONFIGS]
    overrides = {"bundle_root": str(root), "meta_file": str(root / "configs" / "metadata.json"), **overrides}
    return ConfigWorkflow(files, workflow_type="infer", logging_file=False, **overrides)


def _run_all(root: Path, out: Path, overrides: dict[str, Any]) -> None:
    """Run the inference workflow; when a case makes it fail, record that and run it again on those behind."""
    while (records := Records(out / "datalist.json")).left():
        workflow = _workflow(root, overrides)
        try:
            workflow.initialize()
            gc.freeze()  # what is here by now stays, and need not be gone through after each case
            workflow.run()
        except Exception as error:
            case = workflow.parser.get_parsed_content("records").current
            if case is None:
                raise first_cause(error) from error
            records.fail(case, error)
            clear_case(out, case["case"], records.settings)
        finally:
            gc.unfreeze()


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what libraries log and warn of, errors of a case among it: its record says what a user needs."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        if not os.environ.get("OMNET_DEBUG"):
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)
