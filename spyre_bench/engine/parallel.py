"""Tensor parallel: one process per rank, the layers split over them, and how they find each other.

FMS gives each of R ranks 1/R of a layer's heads and of its MLP's width, and sums the halves of a
residual with an all-reduce of [B, Q, hidden] after attention and after the MLP. Embedding, norms
and head are whole on every rank, and so are the logits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from spyre_bench.model_sizes import LARGEST_TP

COLLECTIVE_TIMEOUT = timedelta(hours=1)
"""How long a rank waits in a collective: in warmup another may still compile. Who serves watches
its ranks by other means (the executor's step time-out)."""


@dataclass(frozen=True)
class Rank:
    """Which of the processes that share a model this is. Raises ValueError for one that cannot
    be."""

    rank: int = 0
    tp: int = 1

    def __post_init__(self):
        if not 1 <= self.tp <= LARGEST_TP:
            raise ValueError(
                f"tensor parallel size {self.tp}: use 1 to {LARGEST_TP}, the cards of one cluster"
            )
        if not 0 <= self.rank < self.tp:
            raise ValueError(f"rank {self.rank} of {self.tp}: ranks go from 0 to {self.tp - 1}")

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.tp}"


ALONE = Rank()


def share_of_cores(tp: int) -> int:
    """Threads for each of `tp` ranks on this machine, one at least."""
    return max(1, len(os.sched_getaffinity(0)) // tp)


def join(rank: Rank, meeting_point: Path, timeout_s: float) -> None:
    """Waits for all ranks at a file that they share, then makes torch's default process group.

    Raises TimeoutError, naming those that are missing, after `timeout_s` seconds.
    """
    store = dist.FileStore(str(meeting_point), rank.tp)
    wait = timedelta(seconds=timeout_s)
    store.set_timeout(wait)
    store.set(_here(rank.rank), "")
    try:
        store.wait([_here(other) for other in range(rank.tp)], wait)
    except RuntimeError:  # of no more exact kind, from a FileStore
        missing = [other for other in range(rank.tp) if not store.check([_here(other)])]
        if not missing:
            raise
        raise TimeoutError(
            f"{rank} waited {timeout_s:g} s for rank {', '.join(map(str, missing))}: that process "
            f"did not start or hangs; see its log, or raise join_timeout_s on a slow machine"
        ) from None
    dist.init_process_group(
        "gloo", store=store, rank=rank.rank, world_size=rank.tp, timeout=COLLECTIVE_TIMEOUT
    )


def _here(rank: int) -> str:
    return f"spyre_bench/here/{rank}"


def require_joined(rank: Rank) -> None:
    """Raises RuntimeError for a rank of several that has not joined the others."""
    if rank.tp > 1 and not (
        dist.is_initialized() and (dist.get_rank(), dist.get_world_size()) == (rank.rank, rank.tp)
    ):
        raise RuntimeError(f"{rank} has no process group: call `join` first")


@contextmanager
def in_turns(rank: Rank, at_once: int) -> Iterator[None]:
    """At most `at_once` ranks inside at a time, in order of rank; no collective may run inside.

    Every rank passes as many barriers as there are turns, some before its own and the rest after.
    """
    turns = math.ceil(rank.tp / at_once)
    mine = rank.rank // at_once
    if turns == 1:
        yield
        return
    for _ in range(mine):
        dist.barrier()
    yield
    for _ in range(turns - mine):
        dist.barrier()
