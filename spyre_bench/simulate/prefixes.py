"""Which prompts begin alike: from a trace that says so, or from a stated share."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from spyre_bench.shape_set import BLOCK_TOKENS
from spyre_bench.workload.workload import Workload

HASHED_TOKENS = 512
"""Tokens of a prompt that one of a trace's `hash_ids` stands for (Mooncake's)."""
OFF, TRACE, SHARE = "off", "trace", "share:"


class _Blocks(Sequence[Hashable]):
    """A name for each block of a prompt: the id that stands for its tokens, and which of it."""

    def __init__(self, ids: Sequence[Hashable], prompt_tokens: int):
        self._ids = ids
        named = len(ids) * (HASHED_TOKENS // BLOCK_TOKENS)
        self._blocks = min(named, prompt_tokens // BLOCK_TOKENS)

    def __len__(self) -> int:
        return self._blocks

    def __getitem__(self, at):  # type: ignore[no-untyped-def]
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        if not 0 <= at < len(self):
            raise IndexError(at)
        hashed, within = divmod(at, HASHED_TOKENS // BLOCK_TOKENS)
        return self._ids[hashed], within


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

    Raises ValueError for another text, a share outside of 0 to 1, a trace without hash_ids.
    """
    if text == OFF:
        return None
    if text == TRACE:
        ids = workload.extras.get("hash_ids")
        if ids is None:
            raise ValueError(
                f"workload {workload.name} has no hash_ids, so nothing says which prompts begin "
                f"alike: state a share, such as prefix cache share:0.3, or off"
            )
        return [_Blocks(*of) for of in zip(ids, workload.prompt_tokens.tolist(), strict=True)]
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
