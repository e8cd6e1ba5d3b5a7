"""Several processes under torchrun: what each takes for itself, and what all must share."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Subset

__all__ = [
    "BufferBroadcast",
    "join_processes",
    "leave_processes",
    "parallel_network",
    "share_of_process",
    "torchrun_processes",
    "wait_for_all",
]


def join_processes(backend: str, **options: Any) -> None:
    """
    Join the group of processes that torchrun started. Below warnings, only the first one's log speaks for all.

    Args:
        backend: "nccl" on GPUs, "gloo" on CPUs.
        options: of ``torch.distributed.init_process_group``, such as a ``timeout``.
    """
    # Not idist.initialize: within a SLURM job it takes the scheduler's ranks, which torchrun's processes share, and it
    # gives each process a GPU of its own, whether there is one or not.
    job = os.environ.pop("SLURM_JOB_ID", None)
    try:
        torch.distributed.init_process_group(backend, **options)
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        idist.sync()
    finally:
        os.environ |= {"SLURM_JOB_ID": job} if job else {}
    if idist.get_rank() > 0:
        logging.disable(logging.INFO)


def leave_processes(network: nn.Module) -> None:
    """
    Leave the group of processes, with the end of its threads.

    Whatever holds the group keeps its threads alive, ``DistributedDataParallel`` among it. One of gloo's that still
    held a tensor when Python ended would abort the process (torch 2.13).

    Args:
        network: what :func:`parallel_network` returned; it cannot be trained any more.
    """
    if isinstance(network, DistributedDataParallel):
        del network.reducer, network.logger, network.process_group
    idist.finalize()


@contextmanager
def torchrun_processes() -> Iterator[bool]:
    """Join the other processes if torchrun started some, until the end of the block; tell whether this is the first."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        # One may have been done for hours when the last one is; gloo, as nothing but "done" is said among them.
        join_processes("gloo", timeout=timedelta(days=30))
    try:
        yield idist.get_rank() == 0
    finally:
        if several:
            idist.finalize()


def wait_for_all() -> None:
    """Wait until all processes are here; end without a word if one will not come, as its own error says why."""
    try:
        idist.barrier()
    except RuntimeError as error:
        if idist.get_rank() == 0:
            raise
        raise SystemExit(1) from error


def parallel_network(network: nn.Module) -> nn.Module:
    """
    Move a network to this process's device and train it together with the other processes.

    On GPUs batch normalization takes the statistics of all processes' patches; torch has no such layer for CPUs, where
    each process takes those of its own patches.

    Args:
        network: the network. Its batch normalization may be replaced in place; the names of its tensors stay.

    Returns:
        The network inside ``DistributedDataParallel``, or itself if there is one process alone.
    """
    if idist.get_world_size() == 1:  # on several GPUs auto_model would use them all, by the slower DataParallel
        return network.to(idist.device())
    # In the early stages some heads do not run, and their parameters get no gradient.
    return idist.auto_model(network, sync_bn=idist.device().type == "cuda", find_unused_parameters=True)


def share_of_process(cases: list[Any] | Dataset) -> list[Any] | Subset:
    """
    Pick the cases that this process scores: every n-th of n processes.

    Args:
        cases: a list, or one of MONAI's datasets.

    Returns:
        A list, or a subset of the dataset.

    Raises:
        ValueError: if there are cases, but fewer than processes; the processes without a case would leave the others
            waiting.
    """
    if 0 < len(cases) < idist.get_world_size():
        raise ValueError(f"{idist.get_world_size()} processes need as many cases to score, got {len(cases)}")
    return cases[idist.get_rank() :: idist.get_world_size()]


class BufferBroadcast:
    """
    Give all processes the first one's buffers (running statistics) before they validate: those are what is saved.

    Args:
        network: the network, outside ``DistributedDataParallel``.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Copy the buffers."""
        for buffer in self.network.buffers():
            buffer.copy_(torch.as_tensor(idist.broadcast(buffer, src=0)))
