"""Which prompts begin alike: from a trace that says so, or from a stated share."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import accumulate

import numpy as np

from spyre_bench.shape_set import BLOCK_TOKENS
from spyre_bench.workload.workload import Workload

OFF, TRACE, SHARE = "off", "trace", "share:"
PUBLISHED_TOKENS = 512, 16  # that an id stands for in Mooncake's traces, and in Qwen-Bailian's


class _Hashed(Sequence[Sequence[Hashable]]):
    """Names by a trace's ids: two blocks have the same where all ids up to their end are the same,
    as a server tells them apart (a hash of the name before and of the block's own)."""

    def __init__(self, ids: Sequence[Sequence[Hashable]], workload: Workload):
        self._ids, self._tokens = ids, workload.prompt_tokens
        self._id_tokens = _id_tokens(workload, np.array([len(of) for of in ids]))

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]
        ids, size = self._ids[row], self._id_tokens
        blocks = min(len(ids) * size, int(self._tokens[row])) // BLOCK_TOKENS
        ends = range(BLOCK_TOKENS, (blocks + 1) * BLOCK_TOKENS, BLOCK_TOKENS)
        parts = (ids[(end - BLOCK_TOKENS) // size : -(-end // size)] for end in ends)
        return list(accumulate(parts, lambda name, part: hash((name, *part)), initial=0))[1:]


def _id_tokens(workload: Workload, ids: np.ndarray) -> int:
    """Tokens that each id stands for: a number by which every prompt has its ids, the last of them
    partly filled or left out; where several would do, a published one, or the least that claims
    least. Raises ValueError naming the first request that none suits."""
    some = np.flatnonzero(ids)
    tokens, ids = workload.prompt_tokens[some].astype(np.int64), ids[some]
    least = np.maximum.accumulate(tokens // (ids + 1) + 1)
    above = np.where(ids > 1, -(-tokens // np.maximum(ids - 1, 1)), np.iinfo(np.int64).max)
    above = np.minimum.accumulate(above)
    bad = np.flatnonzero(least >= above)
    if len(bad):
        at = bad[0]
        raise ValueError(
            f"workload {workload.name} request {some[at] + 1}: {ids[at]} hash_ids for a prompt of "
            f"{tokens[at]} tokens suit no number of tokens per id that the requests before have: "
            f"mend it, or state a share, such as prefix cache share:0.3"
        )
    if not len(some):
        return PUBLISHED_TOKENS[0]
    suits = range(int(least[-1]), int(above[-1]))
    return next((size for size in PUBLISHED_TOKENS if size in suits), suits[0])


def _ids_of(workload: Workload) -> list[Sequence[Hashable]]:
    """The ids of each request, none where its cell is empty. Raises ValueError for what is none."""
    column = workload.extras.get("hash_ids")
    if column is None:
        raise ValueError(
            f"workload {workload.name} has no hash_ids, so nothing says which prompts begin "
            f"alike: state a share, such as prefix cache share:0.3, or off"
        )
    found: list[Sequence[Hashable]] = []
    for number, cell in enumerate(column, start=1):
        ids = cell.tolist() if isinstance(cell, np.ndarray) else cell
        if ids is None or ids != ids:  # an empty cell is NaN
            ids = []
        if not isinstance(ids, list) or not all(isinstance(it, int | str) for it in ids):
            raise ValueError(
                f"workload {workload.name} request {number}: hash_ids {str(ids)[:60]} is no list "
                f"of numbers or texts: mend it, or leave it empty"
            )
        found.append(ids)
    return found


class _Common(Sequence[Sequence[Hashable]]):
    """Of every prompt the same share is the beginning that all have in common."""

    def __init__(self, workload: Workload, share: float):
        self._tokens, self._share = workload.prompt_tokens, share

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]
        return range(int(self._share * int(self._tokens[row])) // BLOCK_TOKENS)


def prefixes_of(workload: Workload, text: str) -> Sequence[Sequence[Hashable]] | None:
    """Names for the blocks of each prompt by what `text` says: `off` (no prefix cache: None),
    `trace` (its `hash_ids`), `share:0.3` (so much of each prompt begins like all others).

    Raises ValueError for another text, a share outside of 0 to 1, a trace without hash_ids,
    and ids that are none or do not suit the prompts' lengths.
    """
    if text == OFF:
        return None
    if text == TRACE:
        return _Hashed(_ids_of(workload), workload)
    if text.startswith(SHARE):
        try:
            share = float(text.removeprefix(SHARE))
        except ValueError:
            share = -1.0
        if 0 <= share <= 1:
            return _Common(workload, share)
    raise ValueError(
        f"prefix cache {text!r} is not known: use {OFF}, {TRACE}, or a share from 0 to 1 such as "
        f"{SHARE}0.3"
    )
