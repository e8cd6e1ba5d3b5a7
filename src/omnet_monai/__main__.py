"""The command line: ``python -m omnet_monai VERB``. Training, evaluation and inference are bundle configs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial, wraps
from inspect import Parameter, signature
from io import TextIOWrapper
from typing import Any

import fire
from fire import decorators

from omnet_monai.ablation import ablate
from omnet_monai.benchmark import benchmark
from omnet_monai.datalist import datalist, read_cases
from omnet_monai.demo import demo, generate_cases
from omnet_monai.export import export
from omnet_monai.packaging import package
from omnet_monai.preparation import prepare
from omnet_monai.sampling import first_cause
from omnet_monai.scoring import score
from omnet_monai.segment import require_switches, segment
from omnet_monai.zoo import check

decorators.FIRE_METADATA = "_fire_metadata"  # hidden, or the help of each verb would offer it as a group

USERS = (ImportError, ValueError, TypeError, OSError)
"""Errors that a user can mend; any other is shown with its traceback."""


def phantom(
    directory: str,
    cases: int = 8,
    seed: int = 0,
    size: tuple[int, int, int] = (96, 96, 64),
    test: int = 0,
    kind: str = "mixed",
) -> None:
    """
    Generate cases with BraTS file names, and a datalist whose first ``test`` are for the test.

    Args:
        directory: where to write.
        cases: number of cases.
        seed: of the cases.
        size: shape of each volume in voxels.
        test: how many of the cases are for the test, fewer than all.
        kind: what they have, "mixed" or one of the kinds of tumor that ``omnet_monai.phantom`` lists.
    """
    path = generate_cases(directory, cases, seed, size, test, kind)
    print(f"{len(read_cases(path))} training, {len(read_cases(path, 'test'))} test: {path}")


TEXTS = ("str", "str | None")


def _noting(verb: Callable[..., None], calls: list[Callable[[], None]]) -> Callable[..., None]:
    """
    Make what Fire calls: it notes the call, as Fire tells of an option that a verb does not have only after calling.

    Arguments that are text stay as they are typed: Fire would read a folder called 2024 as a number.
    """
    parameters = signature(verb).parameters
    # Fire calls an argument that is one of many, such as a case, None.
    texts = [
        None if parameter.kind is parameter.VAR_POSITIONAL else name
        for name, parameter in parameters.items()
        if parameter.annotation in TEXTS
    ]

    @decorators.SetParseFn(lambda text: None if text == "None" else text, *texts)
    @wraps(verb)
    def note(*args: Any, **options: Any) -> None:
        given = signature(verb).bind(*args, **options).arguments
        require_switches({name: value for name, value in given.items() if parameters[name].annotation == "bool"})
        for name, value in given.items():
            _require_value(parameters[name], value)
        calls.append(partial(verb, *args, **options))

    return note


def _require_value(parameter: Parameter, value: Any) -> None:
    """Refuse text for a whole number, one number for several, and an option without a value, which Fire calls True."""
    if parameter.annotation == "int" and type(value) is not int:
        raise ValueError(f"--{parameter.name} must be a whole number, got {value!r}")
    whole = isinstance(value, tuple | list) and all(type(number) is int for number in value)
    if parameter.annotation.startswith("tuple[int") and not whole:
        example = ",".join(map(str, parameter.default))
        raise ValueError(f"--{parameter.name} must be whole numbers, as in {example}, got {value!r}")
    if parameter.annotation == "int | Sequence[int]" and not (whole or type(value) is int):
        raise ValueError(f"--{parameter.name} must be whole numbers, as in 0,1,2, got {value!r}")
    if parameter.annotation in TEXTS and value in ("", "True") and value != parameter.default:
        raise ValueError(f"--{parameter.name} must be followed by a text, got {value!r}")
    if value is True and parameter.annotation != "bool":
        raise ValueError(f"--{parameter.name} must be followed by a value, got True")


def main() -> None:
    """Run one verb; an error of the user's is one line on stderr and exit status 1."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a terminal may lack letters of a name
    try:
        verbs = (ablate, benchmark, check, datalist, demo, export, package, phantom, prepare, score, segment)
        calls: list[Callable[[], None]] = []
        command = sys.argv[1:]
        if {"-h", "--help"} & {*command}:  # which a verb that takes any id would take for one
            command = [*(word for word in command[:1] if not word.startswith("-")), "--", "--help"]
        fire.Fire({verb.__name__: _noting(verb, calls) for verb in verbs}, command=command, name="omnet_monai")
        for call in calls:
            call()
    except (*USERS, RuntimeError) as error:
        cause = first_cause(error)  # MONAI wraps the error of a bundle's run
        if os.environ.get("OMNET_DEBUG") or not isinstance(cause, USERS):
            raise
        print(f"error: {cause}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
