"""An engine of continuous batching under the pure host: requests come, share prefixes and go."""

from __future__ import annotations

from torch import Tensor

from spyre_bench.engine.paged_causal_lm import Chunk, DecodeRow, PagedCausalLM
from spyre_bench.policy.continuous import RULES, Decode, Prefill, Rules
from spyre_bench.shape_set import BLOCK_TOKENS
from tests.policy.engine_host import Host, Request


class PagedHost(Host):
    """Greedy tokens, by real passes over the blocks that the host gives out."""

    def __init__(self, engine: PagedCausalLM, rules: Rules = RULES, never: int | None = None):
        super().__init__(engine.shapes, rules)
        self.engine = engine
        self.never = never  # a token that is not chosen
        self.tokens: dict[str, list[int]] = {}  # prompt and outputs

    def ask(self, prompt: list[int], outputs: int, limit: int | None = None) -> str:
        """A request that arrives now; its name."""
        name = str(len(self.tokens))
        whole = range(BLOCK_TOKENS, len(prompt) + 1, BLOCK_TOKENS)
        prefixes = [tuple(prompt[:end]) for end in whole]
        self.tokens[name] = list(prompt)
        self.add(Request(name, len(prompt), outputs, limit or outputs, self.steps, prefixes))
        return name

    def compute(self, step: Prefill[Request] | Decode[Request]) -> None:
        if isinstance(step, Prefill):
            self._chunk(step)
            return
        rows = [
            DecodeRow(
                self.tokens[row.name][row.computed_tokens - 1], row.computed_tokens - 1, row.table
            )
            for row in step.rows
        ]
        logits = self.engine.decode(step.shape, rows)
        for row, token in zip(step.rows, self._likeliest(logits), strict=True):
            self.tokens[row.name].append(token)

    def _chunk(self, step: Prefill[Request]) -> None:
        request, tokens = step.request, self.tokens[step.request.name]
        end = request.computed_tokens
        written = end - step.tokens
        start = written - step.again_tokens
        chunk = Chunk(tokens[start:end], start, request.table, written)
        logits = self.engine.prefill(step.shape, chunk)
        if step.is_last:
            tokens += self._likeliest(logits)

    def _likeliest(self, logits: Tensor) -> list[int]:
        if self.never is not None:
            logits[:, self.never] = float("-inf")
        return logits.argmax(-1).tolist()


def outputs_of(host: PagedHost, requests: list[tuple[int, list[int], int]]) -> list[list[int]]:
    """The outputs of requests (the step when each arrives, its prompt, how many), in order."""
    names = [""] * len(requests)
    to_come = sorted(range(len(requests)), key=lambda place: requests[place][0])
    while to_come or host.waiting or host.running:
        while to_come and requests[to_come[0]][0] <= host.steps:
            place = to_come.pop(0)
            names[place] = host.ask(*requests[place][1:])
        host.step()
        assert host.steps < 5000
    assert host.pool.free_blocks == host.costs.blocks - 1, "blocks leaked"
    lengths = [len(prompt) for _, prompt, _ in requests]
    return [host.tokens[name][length:] for name, length in zip(names, lengths, strict=True)]


def greedy(engine: PagedCausalLM, requests: list[tuple[int, list[int], int]]) -> list[list[int]]:
    """`outputs_of` under the default rules; what a rank is asked."""
    return outputs_of(PagedHost(engine), requests)
