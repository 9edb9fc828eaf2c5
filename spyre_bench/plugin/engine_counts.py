"""What the scheduler counts for the metrics, and its way to the front end.

vLLM's scheduler lives in the engine's process, `/metrics` in the front end's. Of the statistics
that vLLM carries across, `waiting_lora_adapters` is a table of whole numbers by name that nothing
reads without LoRA, which this backend refuses: the counts travel there. They are totals since the
start, so that a lost message loses nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from spyre_bench.policy.ledger import WasteLedger

if TYPE_CHECKING:
    from vllm.v1.metrics.stats import SchedulerStats

    from spyre_bench.pass_log import Warmup
    from spyre_bench.shapes import Bucket

QUEUE_AGE_US = "queue_age_us"


class Counts:
    """Totals by name and label: `batches` and `rows` per bucket, the waste ledger's tokens, the
    warmup's microseconds and graphs, and requests that were refused in the engine."""

    def __init__(self, warmup: Iterable[Warmup]):
        self.totals: Counter[str] = Counter()
        for row in warmup:
            seconds = row.compile_s + row.prefill_s + row.decode_s
            self.totals[_key("warmup_us", row.bucket)] = round(seconds * 1e6)
            self.totals[_key("warmup_graphs", row.bucket)] = row.graphs

    def add_batch(self, bucket: Bucket, rows: int, ledger: WasteLedger) -> None:
        self.totals[_key("batches", bucket)] += 1
        self.totals[_key("rows", bucket)] += rows
        for kind, tokens in asdict(ledger).items():
            self.totals[_key("tokens", bucket, kind)] += tokens

    def add_rejected(self, reason: str) -> None:
        self.totals[_key("rejected", reason)] += 1

    def attach(self, stats: SchedulerStats, queue_age_s: float) -> None:
        stats.waiting_lora_adapters = {**self.totals, QUEUE_AGE_US: round(queue_age_s * 1e6)}


def attached(stats: SchedulerStats) -> dict[tuple[str, ...], int]:
    """The totals on the other side: `(name, label, ...)` to number."""
    return {tuple(key.split("|")): value for key, value in stats.waiting_lora_adapters.items()}


def _key(name: str, *labels: object) -> str:
    return "|".join([name, *map(str, labels)])
