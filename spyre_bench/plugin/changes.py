"""Who came and went between two passes of continuous batching, for the pass log: what the simulator
needs to know to decide as the scheduler did."""

from __future__ import annotations

from weakref import WeakSet

from vllm.v1.request import Request, RequestStatus

from spyre_bench.pass_log import Came, Gone
from spyre_bench.shape_set import BLOCK_TOKENS

NAMED = 16
"""Hexadecimal digits of a block's hash in the pass log: two of a million blocks share a name by
chance once in forty million logs."""
ENDED = (
    RequestStatus.FINISHED_STOPPED,
    RequestStatus.FINISHED_LENGTH_CAPPED,
    RequestStatus.FINISHED_REPETITION,
)


class Changes:
    """Noted since the last pass."""

    def __init__(self) -> None:
        self.unseen: list[Request] = []  # no decision since they came
        self._seen: WeakSet[Request] = WeakSet()
        self._came: list[Came] = []
        self._gone: list[Gone] = []

    def see(self, now: float) -> None:
        """A decision sees all who wait; `now` is of the system's clock."""
        for request in self.unseen:
            if not request.is_finished():
                self._seen.add(request)
                prompt = request.num_prompt_tokens
                tokens, names = (prompt, request.max_tokens), names_of(request, 0, prompt)
                self._came.append(
                    Came(request.request_id, request.arrival_time, now, *tokens, names)
                )
        self.unseen.clear()

    def leave(self, request: Request) -> None:
        """One that has finished is about to give its blocks back; whom no decision saw, none
        misses."""
        if request in self._seen:
            ended = request.status in ENDED
            self._gone.append(Gone(request.request_id, ended, request.num_output_tokens))

    def told(self) -> dict[str, list]:
        """All of it, once."""
        came, gone, self._came, self._gone = self._came, self._gone, [], []
        return {"came": came, "gone": gone}


def completed(request: Request, before: int, after: int) -> list[str]:
    """Names of the blocks that tokens from `before` to `after` complete behind its prompt's."""
    return names_of(request, max(before, request.num_prompt_tokens), after)


def names_of(request: Request, before: int, after: int) -> list[str]:
    """Names of the blocks that end behind `before` tokens of the request and not behind `after`;
    none without a prefix cache."""
    blocks = request.block_hashes[before // BLOCK_TOKENS : after // BLOCK_TOKENS]
    return [block.hex()[:NAMED] for block in blocks]
