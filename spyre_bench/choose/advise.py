"""Which buckets to take for a workload: the optimum that assumes full batches, its near relatives,
and the schemes of other stacks, all replayed; fitted on the first half, reported on the second.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from spyre_bench.choose.optimize import Choice, Limits, candidates, choose_buckets
from spyre_bench.choose.schemes import exponential, one, percentiles, powers_of_two
from spyre_bench.cost.bucket_cost import BucketCost, CostModel, price
from spyre_bench.metrics import latency, summary, waste
from spyre_bench.metrics.bounds import shape_bound_s
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import Bucket
from spyre_bench.simulate.static import simulate
from spyre_bench.workload.workload import Workload

OBJECTIVES = ("device_seconds", "goodput")
TIE = 0.03  # relative; costs are not known better, so that sets this close do as well
TODAY = "today"  # the name of what runs already, among the contenders
FEW = 100  # requests, of which the half that the choice is made on says little of others


@dataclass(frozen=True)
class Advice:
    """The advised buckets, and what they were held against.

    `contenders` has one row per set of buckets: name, kind ("ours", "baseline" or "today"),
    advised, buckets, graphs (buckets in it), compile_s, extrapolated (of its buckets), and for each
    half (`fitted_`, `held_out_`) bound_s (the shape bound), busy_s, p95_e2el_s, goodput_rps, fill,
    rejected and saturated.
    """

    costs: tuple[BucketCost, ...]
    certificate: Choice  # of the choice that assumes full batches
    contenders: pd.DataFrame
    fitted: Workload
    held_out: Workload

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        return tuple(cost.bucket for cost in self.costs)

    @property
    def verdict(self) -> str:
        """What the table comes to, in words: ties, losses and too few requests among it."""
        frame = self.contenders.set_index("name")
        advised = str(frame.index[frame["advised"]][0])
        against = doubts(frame, advised, self.fitted, self.held_out)
        return "; ".join([_against(frame, advised), *against])


def doubts(frame: pd.DataFrame, advised: str, fitted: Workload, held_out: Workload) -> list[str]:
    """What speaks against an advice that the first half gave, in words: whom it refuses in the
    second half, what takes fewer seconds there, whether anybody keeps up, and how many requests it
    was chosen by. `frame`: contenders by name."""
    said = []
    rejected = frame["held_out_rejected"]
    if refused := int(rejected[advised]):
        said.append(
            f"it refuses {refused:,} of the {len(held_out):,} requests of the second half, longer "
            f"than those that it was chosen by"
        )
    # a set that refuses more has less to do
    seconds = frame.loc[rejected <= refused, "held_out_busy_s"].astype(float)
    if float(seconds.min()) < float(seconds[advised]) * (1 - TIE):
        less = 1 - float(seconds.min()) / float(seconds[advised])
        said.append(
            f"on the second half {seconds.idxmin()} takes {less:.0%} less, so the requests are too "
            f"few, or too unlike each other, to tell the two apart"
        )
    if frame["held_out_saturated"].all():
        said.append(
            "every set is saturated: requests come faster than one engine serves them, and no "
            "latency is that of the service (fewer at a time: --arrivals, --rate-scale)"
        )
    if len(fitted) < FEW:
        said.append(
            f"chosen by {len(fitted)} requests, which say little of others: give {2 * FEW} or more"
        )
    return said


def within(workload: Workload, model: CostModel) -> Workload:
    """The requests that the model covers. Raises ValueError where there is none."""
    covered = model.covers(workload)
    if not covered.any():
        raise ValueError(
            f"every request is beyond the cost table, which spans {model.span}: measure longer "
            f"buckets, scale the lengths down (--length-scale), or extrapolate (--extrapolate)"
        )
    return workload if covered.all() else workload.take(covered)


def priced_candidates(
    workload: Workload,
    model: CostModel,
    batch_sizes: Iterable[int],
    *,
    extra: Iterable[Bucket] = (),
    **numbers: int,
) -> tuple[BucketCost, ...]:
    """The candidates for a workload (`optimize.candidates`, which `numbers` are for) that the model
    has a figure for. Raises ValueError where it has none for a whole batch size."""
    buckets = candidates(workload, batch_sizes, smallest=model.smallest[1:], extra=extra, **numbers)
    return _priced(buckets, model)


def advise(
    workload: Workload,
    model: CostModel,
    limits: Limits,
    *,
    batch_sizes: Sequence[int] = (1, 2, 4, 8),
    policy: Policy | None = None,
    objective: str = "device_seconds",
    goodput_ms: Mapping[str, float] | None = None,
    numbers: Mapping[str, int] | None = None,
    today: Sequence[Bucket] = (),
    covering: bool = False,
) -> Advice:
    """Chooses at most `limits.buckets` buckets for the workload.

    Candidates (`numbers` as for `priced_candidates`) are priced by `model`. The programme's optimum
    assumes full batches, which a light load never has, so it is solved once for every largest batch
    size too; each optimum, and each scheme of another stack, is replayed on the first half of the
    workload under `policy`. Advised is the best there by `objective`: fewest busy device seconds,
    or most goodput under `goodput_ms`; of those within `TIE` of it the one that compiles in least
    time, then the one with the lowest P95 of E2EL. The second half shows what that is worth on
    requests that were not looked at. With `covering`, its longest are: every set then takes all
    requests of both halves.

    Raises ValueError for an unknown objective, goodput without limits, and what `choose_buckets`
    refuses.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective {objective!r} is not known: use {' or '.join(OBJECTIVES)}")
    if objective == "goodput" and not goodput_ms:
        raise ValueError("goodput needs an SLO: give limits, for example --goodput e2el:5000")
    if limits.warmup_budget_s is not None:
        model.require_known("compile_s", "a warmup budget (--warmup-budget)")
    if limits.memory_bytes is not None:
        model.require_known("memory_bytes", "a memory limit (--memory-gib)")
    fitted, held_out = workload.halves()
    asked = _with_longest(workload, len(fitted)) if covering else fitted
    baselines = _baselines(asked, limits, max(batch_sizes), model)
    others = (cost.bucket for cost in itertools.chain(*baselines.values()))
    costs = priced_candidates(asked, model, batch_sizes, extra=others, **(numbers or {}))
    certificate = choose_buckets(asked, costs, limits)
    ours = {"optimum": certificate.costs} | _relatives(asked, costs, limits, batch_sizes)
    sets = _distinct(ours) | baselines
    if today:
        sets[TODAY] = price(today, model)
    halves = {"fitted": fitted, "held_out": held_out}
    contenders = pd.DataFrame(
        _row(name, chosen, halves, policy, goodput_ms) for name, chosen in sets.items()
    )
    contenders["kind"] = kinds(contenders["name"], ours)
    best = _best(contenders, limits, objective)
    contenders["advised"] = contenders.index == best
    chosen = sets[str(contenders.at[best, "name"])]
    return Advice(chosen, certificate, contenders, fitted, held_out)


def _with_longest(workload: Workload, first: int) -> Workload:
    """So many first requests, and of the others those that no request exceeds in both prompt and
    max_tokens: buckets that take these take all."""
    order = np.lexsort((-workload.max_tokens, -workload.prompt_tokens))
    tokens = workload.max_tokens[order]
    before = np.concatenate(([0], np.maximum.accumulate(tokens)[:-1]))
    taken = np.arange(len(workload)) < first
    taken[order[tokens > before]] = True
    return workload.take(taken)


def _best(contenders: pd.DataFrame, limits: Limits, objective: str) -> Any:
    """The index of the advised row."""
    fits = contenders["fitted_rejected"] == contenders["fitted_rejected"].min()
    runs = contenders["name"] == TODAY
    if limits.warmup_budget_s is not None:
        fits &= runs | (contenders["compile_s"] <= limits.warmup_budget_s)
    rows = contenders[fits | (contenders["name"] == "optimum")]
    if objective == "goodput":
        tied = rows["fitted_goodput_rps"] >= rows["fitted_goodput_rps"].max() * (1 - TIE)
    else:
        tied = rows["fitted_busy_s"] <= rows["fitted_busy_s"].min() * (1 + TIE)
    if (kept := runs[rows.index] & fits[rows.index] & tied).any():
        return rows.index[kept][0]
    return rows[tied].sort_values(["compile_s", "fitted_p95_e2el_s"], kind="stable").index[0]


def kinds(names: pd.Series, ours: Iterable[str]) -> np.ndarray:
    """Of contenders by name: "today", "ours" or "baseline"."""
    other = np.where(names.isin(list(ours)), "ours", "baseline")
    return np.where(names == TODAY, TODAY, other)


def keeping(frame: pd.DataFrame, compiled: str) -> str:
    """Why what runs today is to stay, in words. `compiled`: "buckets" or "shapes"."""
    busy_s = {str(name): float(seconds) for name, seconds in frame["fitted_busy_s"].items()}
    least = min(busy_s, key=lambda name: busy_s[name])
    if busy_s[TODAY] <= busy_s[least]:
        return f"keep your {compiled}: none takes fewer device seconds on the first half"
    less = 1 - busy_s[least] / busy_s[TODAY]
    return (
        f"keep your {compiled}, it does not matter: {least} takes {less:.1%} fewer device seconds "
        f"on the first half, and below {TIE:.0%} costs are not known well enough to tell"
    )


def _against(frame: pd.DataFrame, advised: str) -> str:
    """The advised set beside the one with the fewest device seconds on the first half, or beside
    the best of the other stacks' schemes where it is that one itself."""
    if advised == TODAY:
        return keeping(frame, "buckets")
    busy_s, compile_s = frame["fitted_busy_s"].to_dict(), frame["compile_s"].to_dict()
    least = min(busy_s, key=lambda name: float(busy_s[name]))
    more = busy_s[advised] / busy_s[least] - 1
    less_s = compile_s[least] - compile_s[advised]
    if advised != least:
        tie = f"{advised} is within {more:.1%} of {least} and compiles {less_s:,.0f} s less"
        shapes = ": at this load shapes hardly matter" if advised == "one shape" else ", a tie"
        return tie + shapes if 0 <= more <= TIE else f"{advised} takes {more:.1%} more than {least}"
    schemes = [name for name in frame.index[frame["kind"] == "baseline"] if name != advised]
    if not schemes:
        return f"{advised} takes the fewest device seconds on the first half"
    scheme = min(schemes, key=lambda name: float(busy_s[name]))
    return (
        f"{advised} takes {1 - busy_s[advised] / busy_s[scheme]:.0%} fewer device seconds on the "
        f"first half than {scheme}, the next scheme of another stack"
    )


def _relatives(
    workload: Workload, costs: Sequence[BucketCost], limits: Limits, batch_sizes: Sequence[int]
) -> dict[str, tuple[BucketCost, ...]]:
    """The optimum with smaller batches only, for each largest batch size."""
    relatives = {}
    for largest in sorted(set(batch_sizes))[:-1]:
        small = [cost for cost in costs if cost.bucket.batch_size <= largest]
        try:
            relatives[f"optimum, B ≤ {largest}"] = choose_buckets(workload, small, limits).costs
        except ValueError:  # fewer rows need not compile faster: perhaps not within the budget
            continue
    return relatives


def _distinct(sets: Mapping[str, tuple[BucketCost, ...]]) -> dict[str, tuple[BucketCost, ...]]:
    return {
        name: costs
        for name, costs in sets.items()
        if next(other for other, same in sets.items() if same == costs) == name
    }


def _priced(buckets: Iterable[Bucket], model: CostModel) -> tuple[BucketCost, ...]:
    """The costs of the buckets that the model has a figure for: a table is rarely measured at every
    combination of its largest sizes. Raises ValueError where it has none for a whole batch size."""
    priced: dict[int, list[BucketCost]] = {}
    refused: dict[int, ValueError] = {}
    for bucket in buckets:
        try:
            priced.setdefault(bucket.batch_size, []).append(model.of(bucket))
        except ValueError as error:
            refused[bucket.batch_size] = error
    for batch_size, refusal in refused.items():
        if not priced[batch_size]:
            raise refusal
    return tuple(itertools.chain(*priced.values()))


def _baselines(
    workload: Workload, limits: Limits, batch_size: int, model: CostModel
) -> dict[str, tuple[BucketCost, ...]]:
    """The prompt lengths of other stacks' schemes, the longest k of each, at the longest output.
    A scheme that goes beyond the cost model is left out."""
    prompts, k = workload.prompt_tokens, limits.buckets
    _, least_prompt, least_output = model.smallest
    new_tokens = max(least_output, int(workload.max_tokens.max()))
    schemes = {
        "one shape": one(prompts),
        "powers of two": powers_of_two(prompts)[-k:],
        "exponential": exponential(prompts)[-k:],
        "percentiles": percentiles(prompts, k),
    }
    baselines = {}
    for name, boundaries in schemes.items():
        priced = sorted({max(length, least_prompt) for length in boundaries})
        if costs := _at_largest_batch(batch_size, priced, new_tokens, limits, model):
            baselines[name] = costs
    return baselines


def _at_largest_batch(
    batch_size: int,
    prompt_lengths: Sequence[int],
    new_tokens: int,
    limits: Limits,
    model: CostModel,
) -> tuple[BucketCost, ...]:
    """A bucket for each length, the batch size halved until all fit the memory; none where they
    never do, or where the model has no figure for one of them."""
    cap = math.inf if limits.memory_bytes is None else limits.memory_bytes
    while batch_size:
        try:
            costs = price((Bucket(batch_size, p, new_tokens) for p in prompt_lengths), model)
        except ValueError:
            return ()
        if max(cost.memory_bytes for cost in costs) <= cap:
            return costs
        batch_size //= 2
    return ()


def _row(
    name: str,
    costs: tuple[BucketCost, ...],
    halves: Mapping[str, Workload],
    policy: Policy | None,
    goodput_ms: Mapping[str, float] | None,
) -> dict[str, Any]:
    row = {
        "name": name,
        "buckets": " ".join(str(cost.bucket) for cost in costs),
        "graphs": len(costs),
        "compile_s": sum(cost.compile_s for cost in costs),
        "extrapolated": sum(cost.extrapolated for cost in costs),
    }
    for half, workload in halves.items():
        run = simulate(workload, costs, policy)
        seconds = summary.duration_s(run)
        good = latency.good_requests(run, goodput_ms) if goodput_ms else 0
        row |= {
            f"{half}_bound_s": shape_bound_s(workload, costs),
            f"{half}_busy_s": summary.busy_s(run),
            f"{half}_p95_e2el_s": latency.latencies(run, (95,))["e2el"].percentiles_ms[95] / 1e3,
            f"{half}_goodput_rps": good / seconds if seconds else 0.0,
            f"{half}_fill": waste.ledger(run).fill,
            f"{half}_rejected": int((~run.served).sum()),
            f"{half}_saturated": bool(summary.saturation(run)),
        }
    return row


def per_request(advice: Advice) -> pd.DataFrame:
    """The contenders' device seconds per served request, so that sets compare that reject different
    numbers: fitted_busy_s, held_out_busy_s and held_out_bound_s, the rest as in `contenders`."""
    frame = advice.contenders
    served = {
        "fitted": len(advice.fitted) - frame["fitted_rejected"],
        "held_out": len(advice.held_out) - frame["held_out_rejected"],
    }
    return frame.drop(columns="fitted_bound_s").assign(
        fitted_busy_s=frame["fitted_busy_s"] / served["fitted"],
        held_out_busy_s=frame["held_out_busy_s"] / served["held_out"],
        held_out_bound_s=frame["held_out_bound_s"] / served["held_out"],
    )
