"""Two processes over gloo stay equal, keep what the first one has, and score as one does."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser, ConfigWorkflow, run
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from omnet_monai import distributed
from omnet_monai.checkpoint import RunCheckpoint
from omnet_monai.cost import NetworkCost
from omnet_monai.distributed import BufferBroadcast, parallel_network, share_of_process
from omnet_monai.networks import OMNet
from omnet_monai.results import read_scores

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
TRAIN = [str(CONFIGS / name) for name in ("train.json", "multi_gpu_train.json")]
EVALUATE = [str(CONFIGS / name) for name in ("train.json", "evaluate.json", "multi_gpu_evaluate.json")]
TINY: dict[str, Any] = {
    "network_def#features": [4, 4, 8, 8],
    # A first side above 16 is trained on in bfloat16 where the CPU has it.
    "patch_size": [24, 16, 16],
    "steps_per_epoch": 2,
    "cases_per_step": 2,
    "patches_per_task": 1,
    "learning_rate": 0.01,
    "train#trainer#max_epochs": 3,
    "curriculum#milestones": [1 / 3, 2 / 3],
    "fold": 0,
    "val_interval": 2,
}
KILLED = 9


def launch(task: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Call a task in two processes with the variables that torchrun sets, and return their exit codes."""
    # A server that has imported everything forks the processes, and has no threads they could lack.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["monai.bundle", "omnet_monai.report", "torch.utils.tensorboard"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=enter, args=(rank, port, task, arguments)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    return [process.exitcode for process in processes]


def enter(rank: int, port: int, task: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    task(*arguments)


def work(files: list[str], settings: dict[str, Any], folder: Path, stop_after: int | None = None) -> None:
    """Run a config as ``monai.bundle run`` does, leave a log and the network of this process; die after an epoch."""
    rank = os.environ["RANK"]
    folder.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=folder / f"rank{rank}.log", level=logging.INFO, force=True)
    save = RunCheckpoint.save

    def save_and_die(self: RunCheckpoint, epoch: int, finished: bool = False) -> None:
        save(self, epoch, finished)
        if epoch == stop_after:
            os._exit(KILLED)

    RunCheckpoint.save = save_and_die  # type: ignore[method-assign]
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, backend="gloo", **settings)
    workflow.initialize()
    workflow.run()
    torch.save(workflow.parser.get_parsed_content("network_def").state_dict(), folder / f"rank{rank}.pt")
    workflow.finalize()
    assert threads_of_gloo() == 0


def join_in_a_job(folder: Path) -> None:
    """Join as below SLURM, which starts torchrun once on each node: its variables are the same for both processes."""
    os.environ |= {f"SLURM_{name}": "0" for name in ("JOB_ID", "PROCID", "LOCALID")} | {"SLURM_NTASKS": "1"}
    distributed.join_processes("gloo")
    ranks = [idist.get_rank(), idist.get_local_rank(), idist.get_world_size()]
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps([*ranks, os.environ["SLURM_JOB_ID"]]))
    idist.finalize()


def settings_for(folder: Path, phantoms: Path) -> dict[str, Any]:
    places = {"dataset_dir": phantoms, "ckpt_dir": folder, "run_dir": folder / "run", "output_dir": folder / "out"}
    places["cache_dir"] = folder / "cache"
    return {**TINY, **{name: str(place) for name, place in places.items()}}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(equal, a, b)) if isinstance(a, (list, tuple)) else bool(a == b)


def load(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, weights_only=True))


@pytest.fixture(scope="module")
def cases(phantoms: Path) -> Path:
    """A datalist whose fold 0 holds two cases, one for each process to validate on."""
    content = json.loads((phantoms / "datalist.json").read_text())
    for case, fold in zip(content["training"], (0, 0, 1), strict=True):
        case["fold"] = fold
    (phantoms / "two.json").write_text(json.dumps(content))
    return phantoms / "two.json"


@pytest.fixture(scope="module")
def whole(phantoms: Path, cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes through the three stages."""
    folder = tmp_path_factory.mktemp("whole")
    assert launch(work, TRAIN, {**settings_for(folder, phantoms), "datalist": str(cases)}, folder) == [0, 0]
    return folder


def test_processes_of_torchrun_keep_their_ranks_within_a_slurm_job(tmp_path: Path) -> None:
    assert launch(join_in_a_job, tmp_path) == [0, 0]
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert found == [[0, 0, 2, "0"], [1, 1, 2, "0"]]


def test_both_processes_end_with_the_same_network_which_is_saved(whole: Path) -> None:
    first, second, saved = load(whole / "rank0.pt"), load(whole / "rank1.pt"), load(whole / "model.pt")
    assert equal(first, second)  # each process saw its own patches, up to the validation after the last epoch
    means = [name for name in first if name.endswith("running_mean")]
    assert means
    assert all(torch.equal(first[name], saved[name]) for name in means)
    assert equal(load(whole / "run" / "checkpoint.pt")["network"], first)


def test_the_first_process_alone_writes_the_log(whole: Path) -> None:
    first, second = ((whole / f"rank{rank}.log").read_text() for rank in (0, 1))
    for count, stage in enumerate(("coarse", "coarse, refined", "coarse, refined, precise"), start=1):
        assert first.count(f"Curriculum: {count} of 3 tasks active ({stage}), epoch {count}.") == 1
    assert first.count("dice_WT") >= 1
    assert "Curriculum" not in second
    assert "dice_WT" not in second


def test_a_killed_run_of_two_processes_ends_with_the_bits_of_an_uninterrupted_one(
    whole: Path, phantoms: Path, cases: Path, tmp_path: Path
) -> None:
    settings = {**settings_for(tmp_path, phantoms), "datalist": str(cases)}
    assert launch(work, TRAIN, settings, tmp_path, 2) == [KILLED, KILLED]
    assert load(tmp_path / "run" / "checkpoint.pt")["epoch"] == 2
    assert launch(work, TRAIN, settings, tmp_path) == [0, 0]
    assert "Resuming after epoch 2 of 3" in (tmp_path / "rank0.log").read_text()
    for file in ("run/checkpoint.pt", "model.pt", "rank0.pt", "rank1.pt"):
        assert equal(load(tmp_path / file), load(whole / file)), file


def test_two_processes_score_as_one_does(whole: Path, phantoms: Path, tmp_path: Path) -> None:
    overrides = {"checkpoint_path": str(whole / "model.pt"), "datalist_key": "training", "fold": None}
    tables = []
    for name in ("one", "two"):
        settings = {**settings_for(tmp_path / name, phantoms), **overrides}
        if name == "one":
            run(config_file=EVALUATE[:2], logging_file=False, **settings)
        else:
            assert launch(work, EVALUATE, settings, tmp_path / name) == [0, 0]
        tables.append(read_scores(tmp_path / name / "out" / "scores.csv"))
        assert len((tmp_path / name / "out" / "evaluations.csv").read_text().splitlines()) == 2
    one, two = tables
    assert list(one) == list(two)
    assert len(two) == 3  # cases, of which one process scores two
    for case in one:
        assert one[case] == pytest.approx(two[case], abs=1e-4)
    for path in sorted((tmp_path / "one" / "out").glob("*_seg.nii.gz")):
        maps = [np.asarray(nib.load(tmp_path / name / "out" / path.name).dataobj) for name in ("one", "two")]
        np.testing.assert_array_equal(*maps, err_msg=path.name)


def broadcast(folder: Path) -> None:
    distributed.join_processes("gloo")
    network = nn.BatchNorm1d(2)
    network.running_mean += idist.get_rank() + 1  # type: ignore[operator]
    network.num_batches_tracked += idist.get_rank() + 5  # type: ignore[operator]
    BufferBroadcast(network)(None)  # type: ignore[arg-type]
    torch.save(network.state_dict(), folder / f"rank{idist.get_rank()}.pt")
    idist.finalize()


def cost(folder: Path) -> None:
    distributed.join_processes("gloo")
    network = OMNet(class_counts=(4, 4, 2), features=(2, 2, 4, 4)).eval()
    evaluator = Engine(lambda engine, batch: [network(windows) for windows in batch])
    NetworkCost(network, folder / f"rank{idist.get_rank()}" / "cost.json").attach(evaluator)
    cases, windows = (1, 1) if idist.get_rank() == 0 else (3, 3)
    with torch.no_grad():
        evaluator.run([[torch.zeros(windows, 4, 16, 8, 8)]] * cases)
    idist.finalize()


def leave(folder: Path) -> None:
    distributed.join_processes("gloo")
    network = distributed.parallel_network(nn.Linear(2, 1))
    network(torch.ones(1, 2)).sum().backward()
    before = threads_of_gloo()
    distributed.leave_processes(network)
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps([before, threads_of_gloo()]))


def threads_of_gloo() -> int:
    return sum("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux lists threads there")
def test_no_thread_of_the_group_is_left_that_could_abort_the_end_of_a_process(tmp_path: Path) -> None:
    assert launch(leave, tmp_path) == [0, 0]
    for rank in (0, 1):
        before, after = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert before > 0
        assert after == 0


def test_the_first_process_writes_what_the_cases_of_both_cost(tmp_path: Path) -> None:
    assert launch(cost, tmp_path) == [0, 0]
    (file,) = tmp_path.rglob("cost.json")
    assert file.parent.name == "rank0"
    found, network = json.loads(file.read_text()), OMNet(class_counts=(4, 4, 2), features=(2, 2, 4, 4)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 4, 16, 8, 8))
    assert found["flops_per_case"] == 2.5 * counter.get_total_flops()  # 1 and 3 times 3 windows of 4 cases
    assert found["passes_per_window"] == 1
    assert found["seconds_per_case"] > 0


def test_before_validation_all_processes_get_the_first_ones_buffers(tmp_path: Path) -> None:
    assert launch(broadcast, tmp_path) == [0, 0]
    for rank in (0, 1):
        state = load(tmp_path / f"rank{rank}.pt")
        assert state["running_mean"].tolist() == [1, 1]
        assert state["num_batches_tracked"] == 5


@pytest.mark.parametrize(("kind", "expected"), [("cpu", False), ("cuda", True)], ids=["CPU", "GPU"])
def test_batch_statistics_are_taken_over_all_processes_on_gpus_alone(
    kind: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(idist, "device", lambda: torch.device(kind))
    monkeypatch.setattr(idist, "auto_model", lambda network, **options: asked.append(options) or network)
    parser = ConfigParser()
    parser.read_config(TRAIN)
    parser["network_def#features"] = [2, 2, 2, 2]
    assert parser.get_parsed_content("network") is parser.get_parsed_content("network_def")
    assert asked == [{"sync_bn": expected, "find_unused_parameters": True}]


def test_a_network_with_statistics_over_all_processes_has_the_same_names_and_output() -> None:
    network = OMNet(features=(2, 2, 4, 4)).eval()
    image = torch.randn(1, 4, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, names = network(image), list(network.state_dict())
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
        torch.testing.assert_close(converted(image), before)
    assert list(converted.state_dict()) == names


@pytest.mark.parametrize("gpus", [0, 2], ids=["no GPU", "two GPUs"])
def test_one_process_trains_the_network_itself(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for module in (idist, idist.utils):
        monkeypatch.setattr(module, "device", lambda: torch.device("cuda" if gpus else "cpu"))
    monkeypatch.setattr(nn.Module, "to", lambda self, device: self)
    network = nn.Linear(1, 1)
    assert parallel_network(network) is network


def test_processes_score_every_case_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
        shares.append(share_of_process(list("abcde")))
    assert shares == [["a", "c", "e"], ["b", "d"]]
    assert share_of_process([]) == []
    with pytest.raises(ValueError, match="2 processes need as many cases to score, got 1"):
        share_of_process("a")


@pytest.mark.parametrize(("given", "expected"), [("abc", ["ac", "b"]), ("", ["", ""])], ids=["three", "none"])
def test_cases_that_are_given_to_validate_on_are_shared_out(
    given: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MONAI Label gives them, without a fold."""
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
        parser = ConfigParser()
        parser.read_config(TRAIN)
        parser.update({"validate#dataset#data": list(given), "validate#preprocessing": None})
        shares.append("".join(case for batch in parser.get_parsed_content("validate#dataloader") for case in batch))
    assert shares == expected
