"""The k-curve: what each further bucket saves, and the number at which one more no longer pays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from spyre_bench.choose.facility import Infeasible
from spyre_bench.choose.optimize import Limits, choose_buckets
from spyre_bench.choose.schemes import optimal
from spyre_bench.cost.bucket_cost import BucketCost, CostModel
from spyre_bench.metrics.bounds import shares_s
from spyre_bench.shapes import Bucket
from spyre_bench.workload.workload import Workload


def k_curve(
    workload: Workload,
    costs: Sequence[BucketCost],
    k: int,
    *,
    reuse: float,
    warmup_budget_s: float | None = None,
    held_out: Workload | None = None,
) -> pd.DataFrame:
    """The proved choice among the candidates `costs` for each number of buckets from 1 to `k` that
    can serve every request: a table without its largest corner needs two.

    One row per number: k, graphs (chosen, at most k), buckets, compile_s of them all; device_s and
    bound_s, the shape bound of the choice and the least that any choice has, in seconds per
    request; total_s, device_s plus the compile seconds spread over the `reuse` requests expected
    between two starts. With `held_out` also held_out_s, the same choice's device seconds per
    request on these, and held_out_lost, how many of them fit none of its buckets and do not count.

    Raises ValueError for `k` or `reuse` below 1, and for what `choose_buckets` refuses at `k`.
    """
    for name, value in (("k", k), ("reuse", reuse)):
        if value < 1:
            raise ValueError(f"{name} {value} is below 1: use 1 or more")
    rows = []
    for number in range(1, k + 1):
        try:
            choice = choose_buckets(workload, costs, Limits(number, warmup_budget_s))
        except Infeasible:
            if number == k:
                raise
            continue
        device_s = choice.objective_s / len(workload)
        rows.append(
            {
                "k": number,
                "graphs": len(choice.costs),
                "buckets": " ".join(map(str, choice.buckets)),
                "compile_s": choice.compile_s,
                "device_s": device_s,
                "bound_s": choice.bound_s / len(workload),
                "total_s": device_s + choice.compile_s / reuse,
            }
            | ({} if held_out is None else _held_out(held_out, choice.costs))
        )
    return pd.DataFrame(rows)


def _held_out(workload: Workload, costs: Sequence[BucketCost]) -> dict[str, float]:
    shares = shares_s(workload, costs)
    taken = np.isfinite(shares)
    mean_s = float(shares[taken].mean()) if taken.any() else float("nan")
    return {"held_out_s": mean_s, "held_out_lost": int((~taken).sum())}


def knee(curve: pd.DataFrame) -> int:
    """The number of buckets with the least total seconds per request, the fewest of equals. Where
    the curve is convex, that is where one more saves less than its compile time; the joint choice
    need not be convex, so all numbers are compared."""
    return int(curve["k"].to_numpy()[curve["total_s"].argmin()])


def prompts_only(
    workload: Workload, model: CostModel, k: int, *, batch_size: int
) -> tuple[float, ...]:
    """Device seconds per request in full batches, for 1 to `k` buckets that differ in their prompt
    length alone: what choosing in one dimension gives, exact. All have `batch_size` rows and room
    for the longest output; nan where the model has no figure for one of them."""
    _, least_prompt, least_output = model.smallest
    prompt_tokens = np.maximum(workload.prompt_tokens, least_prompt)
    new_tokens = max(least_output, int(workload.max_tokens.max()))
    further_passes = float(workload.output_tokens.mean()) - 1

    def share_s(boundaries: np.ndarray) -> np.ndarray:
        sizes = np.maximum(boundaries, least_prompt)
        costs = [model.of(Bucket(batch_size, int(size), new_tokens)) for size in sizes]
        seconds = [cost.prefill_s + further_passes * cost.decode_s for cost in costs]
        # measuring noise must not make a longer bucket the cheaper one
        return np.maximum.accumulate(seconds) / batch_size

    try:
        solved = optimal(prompt_tokens, k, cost_of=share_s)
    except ValueError:
        return (float("nan"),) * k
    return tuple(cost_s / len(workload) for cost_s in solved.cost)
