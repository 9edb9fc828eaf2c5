"""What the scheduler counts for the metrics, and its way to the front end.

vLLM's scheduler lives in the engine's process, `/metrics` in the front end's. Of the statistics
that vLLM carries across, `waiting_lora_adapters` is a table of whole numbers by name that nothing
reads without LoRA, which this backend refuses: the counts travel there. They are totals since the
start, so that a lost message loses nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from spyre_bench.policy.ledger import StepLedger, WasteLedger
from spyre_bench.shape_set import DecodeShape, PrefillShape

if TYPE_CHECKING:
    from vllm.v1.metrics.stats import SchedulerStats

    from spyre_bench.pass_log import ShapeWarmup, Warmup
    from spyre_bench.shapes import Bucket

QUEUE_AGE_US = "queue_age_us"


class Totals:
    """Totals by name and label, of any kind of batching: requests that were refused in the engine,
    and what warmup took."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()

    def add_warmup(self, shape: object, seconds: float, graphs: int) -> None:
        self.totals[_key("warmup_us", shape)] = round(seconds * 1e6)
        self.totals[_key("warmup_graphs", shape)] = graphs

    def add_rejected(self, reason: str) -> None:
        self.totals[_key("rejected", reason)] += 1

    def attach(self, stats: SchedulerStats, queue_age_s: float) -> None:
        stats.waiting_lora_adapters = {**self.totals, QUEUE_AGE_US: round(queue_age_s * 1e6)}


class Counts(Totals):
    """Of static batching: `batches` and `rows` per bucket, and the waste ledger's tokens."""

    def __init__(self, warmup: Iterable[Warmup]):
        super().__init__()
        for row in warmup:
            self.add_warmup(row.bucket, row.compile_s + row.prefill_s + row.decode_s, row.graphs)

    def add_batch(self, bucket: Bucket, rows: int, ledger: WasteLedger) -> None:
        self.totals[_key("batches", bucket)] += 1
        self.totals[_key("rows", bucket)] += rows
        for kind, tokens in asdict(ledger).items():
            self.totals[_key("tokens", bucket, kind)] += tokens


class StepCounts(Totals):
    """Of continuous batching: passes and rows per shape, the slots that they computed and read, and
    what the blocks are doing."""

    def __init__(self, warmup: Iterable[ShapeWarmup]):
        super().__init__()
        for row in warmup:
            seconds = row.compile_s + row.full_s + row.empty_s
            self.add_warmup(row.shape.name, seconds, row.graphs)
        self.totals["preemptions"] = 0

    def add_chunk(self, shape: PrefillShape, tokens: int, again_tokens: int) -> None:
        slots = StepLedger.of_chunk(shape, tokens + again_tokens, again_tokens)
        computed = {"chunk_pad": slots.chunk_pad, "computed_again": slots.again}
        self._add_pass(shape, useful=slots.useful, **computed)

    def add_rows(self, shape: DecodeShape, context_tokens: Sequence[int]) -> None:
        """`context_tokens` of each row, its new one included."""
        rows, context = shape.padded(len(context_tokens), max(context_tokens))
        self.totals[_key("step_rows", shape.name)] += len(context_tokens)
        needed = sum(context_tokens)
        self.totals[_key("context_slots", shape.name, "needed")] += needed
        self.totals[_key("context_slots", shape.name, "context_pad")] += rows * context - needed
        slots = StepLedger.of_decode(shape, len(context_tokens))
        self._add_pass(shape, useful=slots.useful, row_pad=slots.row_pad)

    def add_preemption(self) -> None:
        self.totals["preemptions"] += 1

    def note(self, used: int, cached: int, chunk_tokens: int, paused: int) -> None:
        """Blocks that somebody holds, blocks that keep a prefix, prompt tokens that wait to be
        prefilled, and rows that pause."""
        self.totals["blocks_used"], self.totals["blocks_cached"] = used, cached
        self.totals["chunk_queue_tokens"], self.totals["paused_rows"] = chunk_tokens, paused

    def _add_pass(self, shape: PrefillShape | DecodeShape, **slots: int) -> None:
        self.totals[_key("passes", shape.name)] += 1
        for kind, number in slots.items():
            self.totals[_key("slots", shape.name, kind)] += number


def attached(stats: SchedulerStats) -> dict[tuple[str, ...], int]:
    """The totals on the other side: `(name, label, ...)` to number."""
    return {tuple(key.split("|")): value for key, value in stats.waiting_lora_adapters.items()}


def _key(name: str, *labels: object) -> str:
    return "|".join([name, *map(str, labels)])
