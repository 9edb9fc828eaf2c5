"""A simulated run as the JSON that `vllm bench serve --save-result` writes for a real one, so that
the same tools read both; what only we know is under `spyre_*`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import numpy as np

from spyre_bench.metrics import summary
from spyre_bench.shapes import REJECTIONS
from spyre_bench.simulate.result import Trace


def bench_result(
    trace: Trace,
    *,
    goodput_ms: Mapping[str, float] | None = None,
    percentiles: Sequence[float] = (50, 90, 99),
    detailed: bool = False,
    model: str = "simulated",
) -> dict[str, Any]:
    """The run in vLLM's names and units (seconds in totals and arrays, milliseconds in `_ms`).

    A rejected request counts as failed. `request_goodput` is null without limits `goodput_ms` on
    ttft, tpot or e2el. The arrays with one entry a request, which vLLM saves with
    `--save-detailed`, come with `detailed` only.
    """
    return {
        **_header(trace, model),
        **_totals(trace, goodput_ms),
        **(_arrays(trace) if detailed else {}),
        **_busiest(trace),
        **_statistics(trace, percentiles),
        **_extras(trace),
    }


def _header(trace: Trace, model: str) -> dict[str, Any]:
    rate = trace.workload.requests_per_s
    return {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": "spyre_bench",
        "backend": "spyre_bench",
        "label": None,
        "model_id": model,
        "tokenizer_id": model,
        "num_prompts": len(trace.workload),
        "request_rate": rate if math.isfinite(rate) else "inf",
        "burstiness": 1.0,
        "max_concurrency": None,
    }


def _totals(trace: Trace, goodput_ms: Mapping[str, float] | None) -> dict[str, Any]:
    served = trace.served
    seconds = summary.duration_s(trace)
    completed = int(served.sum())
    inputs = int(trace.workload.prompt_tokens[served].sum())
    outputs = int(trace.workload.output_tokens[served].sum())

    def per_second(count: float) -> float:
        return count / seconds if seconds else 0.0

    good = per_second(summary.good_requests(trace, goodput_ms)) if goodput_ms else None
    return {
        "duration": seconds,
        "completed": completed,
        "failed": len(served) - completed,
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": per_second(completed),
        "request_goodput": good,
        "output_throughput": per_second(outputs),
        "total_token_throughput": per_second(inputs + outputs),
    }


def _arrays(trace: Trace) -> dict[str, list[Any]]:
    """One entry a request, in the order of the workload; zeros and empty lists where rejected."""
    served = trace.served
    outputs = np.where(served, trace.workload.output_tokens, 0)
    frame = summary.requests(trace).fillna({"ttft_s": 0.0, "e2el_s": 0.0})
    return {
        "input_lens": trace.workload.prompt_tokens.tolist(),
        "output_lens": outputs.tolist(),
        "ttfts": frame["ttft_s"].tolist(),
        "itls": [
            [gap_s] * (tokens - 1)
            for gap_s, tokens in zip(trace.decode_s.tolist(), outputs.tolist(), strict=True)
        ],
        "latencies": frame["e2el_s"].tolist(),
        "start_times": trace.workload.arrival_s.tolist(),
        "queue_times": [0.0] * len(served),  # a client that never waits to send
        "generated_texts": [""] * len(served),
        "errors": frame["rejected"].tolist(),
    }


def _busiest(trace: Trace) -> dict[str, Any]:
    tokens, concurrent = summary.busiest_second(trace)
    return {
        "max_output_tokens_per_s": tokens,
        "max_concurrent_requests": concurrent,
        "rtfx": 0.0,  # of audio
    }


def _statistics(trace: Trace, percentiles: Sequence[float]) -> dict[str, float]:
    found = summary.latencies(trace, percentiles)
    return {
        name: value
        for metric in summary.METRICS
        for name, value in _named(metric, found[metric]).items()
    } | _named("spyre_queue", found["queue"])


def _named(metric: str, statistics: summary.Statistics) -> dict[str, float]:
    """`mean_ttft_ms` and so on; percentiles as vLLM writes them, p99 and p99.9."""
    found = {
        f"mean_{metric}_ms": statistics.mean_ms,
        f"median_{metric}_ms": statistics.median_ms,
        f"std_{metric}_ms": statistics.std_ms,
    }
    return found | {
        f"p{percentile:g}_{metric}_ms": value
        for percentile, value in statistics.percentiles_ms.items()
    }


def _extras(trace: Trace) -> dict[str, Any]:
    ledger = summary.ledger(trace)
    reason = summary.saturation(trace)
    hits = np.bincount(trace.batch_bucket, minlength=len(trace.costs)).tolist()
    names = [str(cost.bucket) for cost in trace.costs]
    rejected = np.bincount(trace.rejected, minlength=len(REJECTIONS) + 1)[1:].tolist()
    bound = summary.distance_to_shape_bound(trace)
    return {
        "spyre_workload": trace.workload.name,
        "spyre_buckets": names,
        "spyre_policy": {
            name: "inf" if value == math.inf else value  # JSON has no infinity
            for name, value in asdict(trace.policy).items()
        },
        "spyre_replicas": trace.replicas,
        "spyre_fill": ledger.fill,
        "spyre_waste": asdict(ledger) | {"computed": ledger.computed},
        "spyre_batches": len(trace.batch_rows),
        "spyre_shape_hits": dict(zip(names, hits, strict=True)),
        "spyre_rejected": dict(zip(REJECTIONS, rejected, strict=True)),
        "spyre_busy_s": summary.busy_s(trace),
        "spyre_utilisation": summary.utilisation(trace),
        "spyre_busy_over_shape_bound": bound if math.isfinite(bound) else None,
        "spyre_saturated": bool(reason),
        "spyre_saturation": reason,
        "spyre_ready_s": trace.ready_s,
        "spyre_client_overhead_s": trace.client_overhead_s,
        "spyre_warmup_s": sum(cost.warmup_s for cost in trace.costs),
        "spyre_extrapolated": [str(c.bucket) for c in trace.costs if c.extrapolated],
    }
