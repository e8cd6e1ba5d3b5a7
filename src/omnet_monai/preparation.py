"""Prepare all training cases before a training: none keeps it waiting then, or ends it in its third hour."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from omnet_monai.demo import bundle_config, bundle_root
from omnet_monai.sampling import first_cause

__all__ = ["prepare"]


def prepare(datalist: str, workers: int = 0, bundle: str = "", **overrides: Any) -> None:
    """
    Read, check and prepare all training cases of a data list into the cache that ``train.json`` reads from.

    A training does so itself, when it first draws a case, and ends at one that cannot be read. Here all of these are
    named, and the others are prepared.

    Args:
        datalist: JSON file that lists the cases.
        workers: processes that share the work, 0 for this one alone.
        bundle: root of the bundle, by default the current folder if it is one, or that beside this package.
        overrides: ids of train.json to override, as they will be for the training, such as ``cache_dir``.

    Raises:
        ValueError: for an id that train.json does not have, and if a case could not be prepared, after all others were.
    """
    parser = bundle_config(bundle_root(bundle), ("train.json",), {"datalist": datalist, **overrides})
    cases = parser.get_parsed_content("train#dataset")
    errors = DataLoader(_Errors(cases), batch_size=None, num_workers=workers)
    failed = [error for error in tqdm(errors, unit="case") if error]
    print("\n".join([*failed, f"{len(cases) - len(failed)} of {len(cases)} cases prepared in {cases.cache_dir}"]))
    if failed:
        raise ValueError(f"{len(failed)} of {len(cases)} cases of {datalist} cannot be trained on, see above")


class _Errors(Dataset):
    """For each case the error that preparing it ends in, empty if it ends in none."""

    def __init__(self, cases: Any) -> None:
        self.cases = cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, position: int) -> str:
        try:
            self.cases[position]
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            return str(first_cause(error))
        return ""
