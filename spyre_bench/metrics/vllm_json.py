"""A simulated run as the JSON that `vllm bench serve --save-result` writes for a real one, so that
the same tools read both; what only we know is under `spyre_*`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import numpy as np

from spyre_bench.metrics import latency, summary, waste
from spyre_bench.shapes import REJECTIONS
from spyre_bench.simulate.result import DECODE, ContinuousRun, SimulatedRun


def bench_result(
    run: SimulatedRun,
    *,
    goodput_ms: Mapping[str, float] | None = None,
    percentiles: Sequence[float] = (50, 90, 99),
    detailed: bool = False,
    model: str = "simulated",
) -> dict[str, Any]:
    """The run in vLLM's names and units (seconds in totals and arrays, milliseconds in `_ms`).

    A rejected request counts as failed. `request_goodput` is null without limits `goodput_ms` on
    ttft, tpot or e2el. The arrays with one entry per request, which vLLM saves with
    `--save-detailed`, come with `detailed` only.
    """
    return {
        **_header(run, model),
        **_totals(run, goodput_ms),
        **(_arrays(run) if detailed else {}),
        **_busiest(run),
        **_statistics(run, percentiles),
        **_extras(run),
    }


def _header(run: SimulatedRun, model: str) -> dict[str, Any]:
    rate = run.workload.requests_per_s
    return {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": "spyre_bench",
        "backend": "spyre_bench",
        "label": None,
        "model_id": model,
        "tokenizer_id": model,
        "num_prompts": len(run.workload),
        "request_rate": rate if math.isfinite(rate) else "inf",
        "burstiness": None,  # a workload does not say how its arrivals came about
        "max_concurrency": None,
    }


def _totals(run: SimulatedRun, goodput_ms: Mapping[str, float] | None) -> dict[str, Any]:
    served = run.served
    seconds = summary.duration_s(run)
    completed = int(served.sum())
    inputs = int(run.workload.prompt_tokens[served].sum())
    outputs = int(run.workload.output_tokens[served].sum())

    def per_second(count: float) -> float:
        return count / seconds if seconds else 0.0

    good = per_second(latency.good_requests(run, goodput_ms)) if goodput_ms else None
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


def _arrays(run: SimulatedRun) -> dict[str, list[Any]]:
    """One entry per request, in the order of the workload; zeros and empty lists where rejected."""
    served = run.served
    outputs = np.where(served, run.workload.output_tokens, 0)
    frame = summary.requests(run).fillna({"ttft_s": 0.0, "e2el_s": 0.0})
    return {
        "input_lens": run.workload.prompt_tokens.tolist(),
        "output_lens": outputs.tolist(),
        "ttfts": frame["ttft_s"].tolist(),
        "itls": _itls(run),
        "latencies": frame["e2el_s"].tolist(),
        "start_times": run.workload.arrival_s.tolist(),
        "queue_times": [0.0] * len(served),  # a client that never waits to send
        "generated_texts": [""] * len(served),
        "errors": frame["rejected"].tolist(),
    }


def _itls(run: SimulatedRun) -> list[list[float]]:
    """Seconds between the tokens of each request."""
    gaps_s: list[list[float]] = [[] for _ in run.served]
    passes = run.passes
    yields = passes.kind == DECODE
    yields[np.searchsorted(passes.first_member, passes.resumed, side="right") - 1] = True
    for row in np.flatnonzero(yields):
        seconds, got = float(passes.seconds[row]), passes.of_row(row)
        for member, tokens, waited_s in zip(*(column.tolist() for column in got), strict=True):
            if tokens and run.served[member]:
                gaps_s[member] += [waited_s + seconds, *[seconds] * (tokens - 1)]
    return gaps_s


def _busiest(run: SimulatedRun) -> dict[str, Any]:
    tokens, concurrent = summary.busiest_second(run)
    return {
        "max_output_tokens_per_s": tokens,
        "max_concurrent_requests": concurrent,
        "rtfx": 0.0,  # of audio
    }


def _statistics(run: SimulatedRun, percentiles: Sequence[float]) -> dict[str, float]:
    statistics = latency.latencies(run, percentiles)
    return {
        name: value
        for metric in latency.METRICS
        for name, value in _named(metric, statistics[metric]).items()
    } | _named("spyre_queue", statistics["queue"])


def _named(metric: str, statistics: latency.Statistics) -> dict[str, float]:
    """`mean_ttft_ms` and so on; percentiles as vLLM writes them, p99 and p99.9."""
    named = {
        f"mean_{metric}_ms": statistics.mean_ms,
        f"median_{metric}_ms": statistics.median_ms,
        f"std_{metric}_ms": statistics.std_ms,
    }
    return named | {
        f"p{percentile:g}_{metric}_ms": value
        for percentile, value in statistics.percentiles_ms.items()
    }


def _extras(run: SimulatedRun) -> dict[str, Any]:
    ledger = waste.ledger(run)
    reason = summary.saturation(run)
    names = list(run.shapes)
    batches = len(run.passes.first_of_batch)
    unserved = np.bincount(run.requests.rejected, minlength=len(REJECTIONS) + 1)
    rejected = unserved[1 : len(REJECTIONS) + 1].tolist()
    bound = summary.distance_to_shape_bound(run)
    return {
        "spyre_workload": run.workload.name,
        "spyre_buckets": names,
        **_of_kind(run, names),
        "spyre_policy": {
            name: "inf" if value == math.inf else value  # JSON has no infinity
            for name, value in asdict(run.policy).items()
        },
        "spyre_replicas": run.replicas,
        "spyre_fill": ledger.fill,
        "spyre_waste": asdict(ledger) | {"computed": ledger.computed},
        "spyre_batches": batches,
        "spyre_rejected": dict(zip(REJECTIONS, rejected, strict=True)),
        "spyre_busy_s": summary.busy_s(run),
        "spyre_utilisation": summary.utilisation(run),
        "spyre_busy_over_shape_bound": bound if math.isfinite(bound) else None,
        "spyre_saturated": bool(reason),
        "spyre_saturation": reason,
        "spyre_ready_s": run.ready_s,
        "spyre_client_overhead_s": run.client_overhead_s,
        "spyre_warmup_s": run.warmup_s,
        "spyre_extrapolated": list(run.extrapolated),
    }


def _of_kind(run: SimulatedRun, names: list[str]) -> dict[str, Any]:
    """What ran in each shape: batches of static batching, passes of continuous batching."""
    passes = run.passes
    if not isinstance(run, ContinuousRun):
        hits = np.bincount(passes.shape[passes.first_of_batch], minlength=len(names))
        return {"spyre_shape_hits": dict(zip(names, hits.tolist(), strict=True))}
    hits = np.bincount(passes.shape, weights=passes.count, minlength=len(names)).astype(int)
    return {
        "spyre_batching": "continuous",
        "spyre_blocks": run.costs.blocks,
        "spyre_shape_hits": dict(zip(names, hits.tolist(), strict=True)),
        "spyre_paid": asdict(waste.paid(run)),
        "spyre_hit_tokens": int(run.hit_tokens.sum()),
    }
