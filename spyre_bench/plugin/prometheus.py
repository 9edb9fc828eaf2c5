"""Our Prometheus metrics, beside vLLM's on `/metrics`; `docs/OPERATIONS.md` says what each is for.

What the engine counts arrives with vLLM's statistics of each step (`engine_counts.py`); what the
front end decides, refusals and clamped requests, is counted where it is decided.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge
from vllm.platforms import current_platform
from vllm.v1.metrics.loggers import StatLoggerBase

from spyre_bench.plugin.counters import clamped, rejected
from spyre_bench.plugin.engine_counts import QUEUE_AGE_US, attached
from spyre_bench.plugin.platform import SpyrePlatform
from spyre_bench.plugin.shims import watch_max_tokens

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

ENGINE = ("model_name", "engine")


@cache
def _counters() -> dict[str, Counter]:
    """Fed from totals of the same name; see `engine_counts.Counts`."""
    bucket, shape = (*ENGINE, "bucket"), (*ENGINE, "shape")
    return {
        "batches": Counter("spyre:batches", "Batches run to their end.", bucket),
        "rows": Counter("spyre:batch_rows", "Requests in those batches.", bucket),
        "tokens": Counter(
            "spyre:tokens",
            "Token slots those batches computed, by kind: useful, or one of the wastes batch_pad, "
            "prompt_pad, bucket_pad, decode_tail, cap.",
            (*bucket, "kind"),
        ),
        "passes": Counter("spyre:passes", "Passes of continuous batching.", shape),
        "step_rows": Counter("spyre:decode_rows", "Requests in its decode passes.", shape),
        "slots": Counter(
            "spyre:slots",
            "Token slots its passes computed, by kind: useful, or one of the wastes chunk_pad, "
            "computed_again, row_pad.",
            (*shape, "kind"),
        ),
        "context_slots": Counter(
            "spyre:context_slots",
            "Slots of context its decode passes read, by kind: needed, context_pad.",
            (*shape, "kind"),
        ),
        "preemptions": Counter("spyre:preemptions", "Requests that gave blocks back.", ENGINE),
    }


@cache
def _gauges() -> dict[str, Gauge]:
    bucket = (*ENGINE, "bucket")
    return {
        "fill": _gauge("spyre:fill_ratio", "Useful over computed tokens since the start.", bucket),
        "warmup_us": _gauge("spyre:warmup_seconds", "Compile and first runs at start.", bucket),
        "warmup_graphs": _gauge("spyre:warmup_graphs", "Graphs captured at start.", bucket),
        QUEUE_AGE_US: _gauge(
            "spyre:queue_age_seconds", "How long the longest waiting request waits.", ENGINE
        ),
        "blocks_used": _gauge("spyre:blocks_used", "Blocks that somebody holds.", ENGINE),
        "blocks_cached": _gauge("spyre:blocks_cached", "Blocks that keep a prefix.", ENGINE),
        "chunk_queue_tokens": _gauge(
            "spyre:chunk_queue_tokens", "Prompt tokens that wait to be prefilled.", ENGINE
        ),
        "paused_rows": _gauge("spyre:paused_rows", "Running requests that sit out.", ENGINE),
    }


def _gauge(name: str, text: str, labels: tuple[str, ...]) -> Gauge:
    return Gauge(name, text, labels, multiprocess_mode="mostrecent")  # as vLLM's


def _count_clamped(prompt_tokens: int, reason: str) -> None:
    """A prompt that no bucket takes is granted a token as well, only to be refused."""
    if SpyrePlatform.takes_prompt(prompt_tokens):
        clamped().labels(reason).inc()


class SpyreStatLogger(StatLoggerBase):
    """vLLM builds one for each engine of a server and hands it every step's statistics; on any
    device, so that on others it does nothing."""

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0):
        self._ours = isinstance(current_platform, SpyrePlatform)
        if not self._ours:
            return
        SpyrePlatform.adopt(vllm_config)
        self._labels = (vllm_config.model_config.served_model_name, str(engine_index))
        self._seen: dict[tuple[str, ...], int] = {}
        # Of several API servers, whose counters are added up, one counts. The totals of a step go
        # to any of them; those of a step without output, as the last one before a rest, to this.
        self._counts = vllm_config.parallel_config._api_process_rank == 0
        watch_max_tokens(_count_clamped)
        for metric in (rejected, clamped, _counters, _gauges):  # there before the first event
            metric()

    def log_engine_initialized(self) -> None:
        """Nothing to say: warmup comes with the first statistics."""

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        if not self._ours or scheduler_stats is None:
            return
        totals = attached(scheduler_stats)
        for (name, *labels), total in totals.items():
            grown = total - self._seen.get((name, *labels), 0)
            if name == "rejected":
                rejected().labels(*labels).inc(grown * self._counts)
            elif name in _counters():
                _counters()[name].labels(*self._labels, *labels).inc(grown * self._counts)
            else:
                scale = 1e-6 if name.endswith("_us") else 1
                _gauges()[name].labels(*self._labels, *labels).set(total * scale)
        self._set_fill(totals)
        self._seen |= totals

    def _set_fill(self, totals: dict[tuple[str, ...], int]) -> None:
        for name, *labels in totals:
            if name == "batches":
                (bucket,) = labels
                kinds = {key[2]: n for key, n in totals.items() if key[:2] == ("tokens", bucket)}
                fill = kinds["useful"] / sum(kinds.values())
                _gauges()["fill"].labels(*self._labels, bucket).set(fill)
