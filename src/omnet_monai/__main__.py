"""The command line: ``python -m omnet_monai VERB``. Training, evaluation and inference are bundle configs."""

from __future__ import annotations

import os
import sys

import fire

from omnet_monai.benchmark import benchmark
from omnet_monai.datalist import datalist
from omnet_monai.demo import demo
from omnet_monai.export import export
from omnet_monai.packaging import package
from omnet_monai.phantom import write_phantoms
from omnet_monai.scoring import score
from omnet_monai.segment import segment
from omnet_monai.zoo import check


def phantom(directory: str, cases: int = 8, seed: int = 0, size: tuple[int, int, int] = (96, 96, 64)) -> None:
    """Generate cases with BraTS file names, and the datalist beside them; see ``phantom.write_phantoms``."""
    write_phantoms(directory, cases, seed, size)
    datalist(directory, folds=min(5, cases))


def main() -> None:
    """Run one verb; an error of the user's is one line on stderr and exit status 1."""
    try:
        verbs = (benchmark, check, datalist, demo, export, package, phantom, score, segment)
        fire.Fire({verb.__name__: verb for verb in verbs}, name="python -m omnet_monai")
    except (ImportError, ValueError, OSError) as error:
        if os.environ.get("OMNET_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
