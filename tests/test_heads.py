"""What each task tells of the regions, beside what the network makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from omnet_monai.networks import OMNet

COUNTS = (4, 4, 2)


@pytest.fixture
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("heads")


def test_a_region_comes_from_the_tasks_that_a_choice_names(script: ModuleType) -> None:
    # Background, NCR/NET, edema, enhancing of the coarse and of the refined task; all else and enhancing of the last.
    told = [torch.tensor(classes) for classes in ([0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.1], [0.5, 0.5])]
    choices = {name: probs.tolist() for name, probs in script._choices(told)}
    assert choices == {
        "each from its own task": pytest.approx([0.9, 0.4, 0.5]),
        "TC and ET from refined": pytest.approx([0.9, 0.4, 0.1]),
        "all from coarse": pytest.approx([0.9, 0.6, 0.4]),
        "the mean of those that tell it": pytest.approx([0.9, 0.5, 1 / 3]),
    }


def test_own_tasks_tell_what_the_network_returns(script: ModuleType) -> None:
    torch.manual_seed(0)
    network, x = OMNet(class_counts=COUNTS, features=(4, 4, 8, 8)).eval(), torch.randn(2, 4, 16, 16, 16)
    with torch.no_grad():
        told = script.AllTasks(network)(x)
        assert told.shape == (2, sum(COUNTS), 16, 16, 16)
        for patch, regions in zip(told, network(x), strict=True):
            torch.testing.assert_close(dict(script._choices(patch.split(COUNTS)))["each from its own task"], regions)
    assert not any(head._forward_hooks for head in network.heads)


def test_every_held_out_case_is_scored_for_every_choice(
    script: ModuleType,
    small_bundle: Path,
    phantoms: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "bundle_root", lambda: small_bundle)
    weights, datalist = str(small_bundle / "models" / "model.pt"), str(phantoms / "datalist.json")
    script.main(datalist, weights, weights, folds=(0, 2))
    *lines, means = capsys.readouterr().out.split("\n\n")
    assert len(lines[0].splitlines()) == 2 * 4  # a case in each fold, four choices
    assert len(means.splitlines()) == 1 + 4
    with pytest.raises(ValueError, match="each of 2 files of weights must have a fold, got 1 folds"):
        script.main(datalist, weights, weights, folds=1)
