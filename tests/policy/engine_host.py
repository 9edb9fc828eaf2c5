"""The smallest engine that `next_step` can drive: blocks, requests and passes, without a clock."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from spyre_bench.cost.shape_cost import DecodeCost, PrefillCost, ShapeCosts
from spyre_bench.policy.blocks import BlockPool
from spyre_bench.policy.continuous import NEVER, RULES, Decode, Preempt, Prefill, Rules, next_step
from spyre_bench.shape_set import BLOCK_TOKENS, ShapeSet, blocks_of


def costs_of(shapes: ShapeSet) -> ShapeCosts:
    """A second for every token that a pass computes."""
    return ShapeCosts(
        tuple(PrefillCost(shape, shape.chunk_length) for shape in shapes.prefill),
        tuple(DecodeCost(shape, shape.rows * shape.context_length) for shape in shapes.decode),
        shapes.blocks,
    )


@dataclass(eq=False)
class Request:
    name: str
    prompt: int
    outputs: int  # how many it will have
    limit: int  # its max_tokens
    arrival_s: float = 0.0  # a step
    prefixes: Sequence[Hashable] = ()  # of the prompt's whole blocks
    pool: BlockPool | None = None
    done: int = 0  # outputs so far
    restarted: int = 0  # outputs when it was preempted last
    computed_tokens: int = 0
    paused_for: int = 0
    table: list[int] = field(default_factory=list)
    kept: int = 0  # blocks of its table that keep a prefix

    @property
    def prompt_tokens(self) -> int:
        return self.prompt + self.restarted

    @property
    def max_tokens(self) -> int:
        return self.limit - self.restarted

    @property
    def held_blocks(self) -> int:
        return len(self.table)

    @property
    def reserved_blocks(self) -> int:
        return blocks_of(self.prompt + self.limit) - len(self.table)

    def hit(self) -> list[int]:
        most = (self.prompt_tokens - 1) // BLOCK_TOKENS
        return self.pool.hit([self.prefix(index) for index in range(most)])

    @property
    def hit_blocks(self) -> int:
        return len(self.hit())

    @property
    def shared_blocks(self) -> int:
        return self.pool.held(self.hit())

    def prefix(self, index: int) -> Hashable:
        return self.prefixes[index] if index < len(self.prefixes) else (self.name, index)


class Host:
    def __init__(self, shapes: ShapeSet, rules: Rules = RULES):
        self.costs, self.rules = costs_of(shapes), rules
        self.pool = BlockPool(shapes.blocks)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.decodes_since_chunk = NEVER
        self.steps = 0

    def add(self, request: Request) -> None:
        request.pool = self.pool
        self.waiting.append(request)

    def abort(self, request: Request) -> None:
        if request in self.waiting:
            self.waiting.remove(request)
        else:
            self._leave(request)

    def decide(self) -> Prefill | Decode | Preempt | None:
        return next_step(
            iter(self.waiting),
            self.running,
            self.pool.free_blocks,
            self.costs,
            self.rules,
            self.decodes_since_chunk,
            self.steps,
        )

    def step(self) -> tuple[Prefill | Decode | None, list[Request]]:
        """Runs what is decided, after the preemptions that come before it: the step, and who ended
        with it."""
        while isinstance(step := self.decide(), Preempt):
            self._preempt(step.request)
        self.steps += 1
        if isinstance(step, Prefill):
            return step, self._prefill(step)
        return step, self._decode(step) if step else []

    def run(self) -> Iterator[tuple[Prefill | Decode, list[Request]]]:
        while self.waiting or self.running:
            yield self.step()

    def compute(self, step: Prefill[Request] | Decode[Request]) -> None:
        """What a real engine does here; its blocks are taken. Aborts come here too."""

    def _prefill(self, step: Prefill[Request]) -> list[Request]:
        request = step.request
        if step.is_first:
            self.waiting.remove(request)
            self.running.append(request)
            request.table = request.hit()
            self.pool.hold(request.table)
            request.kept = len(request.table)
            request.computed_tokens = len(request.table) * BLOCK_TOKENS
        self._store(request, step.tokens)
        self.compute(step)
        self.decodes_since_chunk = 0
        return self._output([request]) if step.is_last else []

    def _decode(self, step: Decode[Request]) -> list[Request]:
        decoding = [r for r in self.running if r.computed_tokens >= r.prompt_tokens]
        for request in decoding:
            request.paused_for += 1
        for request in step.rows:
            request.paused_for = 0
            self._store(request, 1)
        self.compute(step)
        self.decodes_since_chunk += 1
        return self._output(step.rows)

    def _store(self, request: Request, tokens: int) -> None:
        request.computed_tokens += tokens
        missing = blocks_of(request.computed_tokens) - len(request.table)
        request.table += self.pool.take(missing) if missing > 0 else []
        while request.kept < request.computed_tokens // BLOCK_TOKENS:
            self.pool.keep(request.table[request.kept], request.prefix(request.kept))
            request.kept += 1

    def _output(self, rows: Sequence[Request]) -> list[Request]:
        ended = []
        for request in rows:
            request.done += 1
            if request.done == request.outputs and request in self.running:
                ended.append(request)
        for request in ended:
            self._leave(request)
        return ended

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        self.pool.give_back(request.table)
        request.table, request.kept = [], 0

    def _preempt(self, request: Request) -> None:
        self._leave(request)
        request.restarted, request.computed_tokens, request.paused_for = request.done, 0, 0
        self.waiting.insert(0, request)
