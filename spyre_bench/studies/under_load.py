"""How full batches get: policies and hold timers under load, sets of buckets with everybody queued.

Every comparison runs on the same requests; for another load the same arrivals come faster or
slower. A load is the share of a capacity, the throughput of one policy that is never short of
company (`capacity_rps`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd

from spyre_bench.choose.advise import priced_candidates
from spyre_bench.choose.optimize import Choice, Limits, choose_buckets
from spyre_bench.choose.schemes import one, percentiles, powers_of_two
from spyre_bench.cost.bucket_cost import BucketCost, CostModel, price
from spyre_bench.cost.spread import Draw
from spyre_bench.metrics import summary, waste
from spyre_bench.metrics.bounds import shape_bound_s, shares_s
from spyre_bench.metrics.intervals import replicate
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import STICK_TOKENS, Bucket, BucketSet
from spyre_bench.simulate.result import SimulatedRun, StaticRun
from spyre_bench.simulate.static import simulate
from spyre_bench.workload.workload import Workload

LATENCIES = ("median_ttft_s", "p95_ttft_s", "median_e2el_s", "p95_e2el_s")


def fitting(workload: Workload, costs: Sequence[BucketCost]) -> Workload:
    """The requests that a bucket takes; ValueError, with the bucket that would take all of them,
    where there is none."""
    fits = np.isfinite(shares_s(workload, costs))
    if not fits.any():
        buckets = BucketSet(tuple(cost.bucket for cost in costs))
        buckets.require_fit(int(workload.prompt_tokens.max()), int(workload.max_tokens.max()))
    return workload.take(fits)


def capacity_rps(
    workload: Workload, costs: Sequence[BucketCost], policy: Policy | None = None
) -> float:
    """Requests/s of a policy that has all requests queued at once: what load 1 means. ValueError
    where no bucket takes a request."""
    run = simulate(fitting(workload, costs).with_arrivals("all"), costs, policy)
    return float(run.served.sum()) / summary.busy_s(run)


def at_rate(workload: Workload, requests_per_s: float) -> Workload:
    """The same arrivals in the same pattern, stretched or pressed together to this mean rate."""
    if not 0 < requests_per_s < math.inf:
        raise ValueError(f"rate {requests_per_s} requests/s is not a positive number")
    if math.isinf(workload.requests_per_s):
        raise ValueError(
            f"workload {workload.name} comes all at once: there is no pattern of arrivals to "
            f"stretch; draw one, for example poisson:1"
        )
    return workload.scaled(rate=requests_per_s / workload.requests_per_s)


def at_loads(
    workload: Workload, loads: Sequence[float], capacity: float, rng: np.random.Generator
) -> dict[str, Workload]:
    """The workload at each load, a share of `capacity` in requests/s, by the load's name; Poisson
    arrivals, drawn anew for each."""
    return {
        f"load {load:g}": at_rate(workload.with_arrivals("poisson:1", rng), load * capacity)
        for load in loads
    }


def under_load(
    workload: Workload,
    costs: Sequence[BucketCost],
    policies: Iterable[Policy],
    loads: Sequence[float],
    capacity: float,
) -> pd.DataFrame:
    """Every policy at every load, a share of `capacity` in requests/s: one row each, policies
    outermost.

    policy (its name), max_wait_s, load, rate_rps, saturated, rows (mean members of a batch), slots
    (that the passes of all batches had), the ledger as shares of these (`useful_share`, ...), and
    what `metrics.summary.summary` gives, its milliseconds as seconds. Latencies of a saturated run
    measure how long it is. Raises ValueError for a load that is not positive.
    """
    for load in loads:
        if not 0 < load < math.inf:
            raise ValueError(f"load {load} is not a positive share of the capacity, such as 0.5")
    rows = []
    for policy, load in itertools.product(policies, loads):
        run = simulate(at_rate(workload, load * capacity), costs, policy)
        rows.append(
            {
                "policy": policy.name,
                "max_wait_s": policy.max_wait_s,
                "load": load,
                "rate_rps": load * capacity,
                "saturated": bool(summary.saturation(run)),
                **_load_figures(run),
            }
        )
    return pd.DataFrame(rows)


def bands(
    workload: Workload,
    source: CostModel,
    costs: Sequence[BucketCost],
    policy: Policy,
    loads: Sequence[float],
    capacity: float,
    *,
    seed: int = 0,
    replications: int = 20,
) -> pd.DataFrame:
    """P5 and P95 of latencies of a policy at every load, a share of `capacity` in requests/s, over
    replications with passes as the spread of the source's costs draws them: policy, load, spread
    (where it is from), and of each of LATENCIES `low_...` and `high_...`. Without a spread it is
    empty."""
    spread = source.spread(costs)
    if spread is None:
        return pd.DataFrame(columns=["policy", "load", "spread"])
    rows = []
    for load in loads:
        serve = partial(_serve, at_rate(workload, load * capacity), costs, policy)
        intervals = replicate(
            serve, spread, replications=replications, seed=seed, figures=_latencies_s
        )
        ends = {name: intervals[name] for name in LATENCIES}
        low = {f"low_{name}": low for name, (low, _) in ends.items()}
        high = {f"high_{name}": high for name, (_, high) in ends.items()}
        names = {"policy": policy.name, "load": load, "spread": spread.source}
        rows.append(names | low | high)
    return pd.DataFrame(rows)


def _serve(
    workload: Workload, costs: Sequence[BucketCost], policy: Policy, draw: Draw
) -> SimulatedRun:
    drawn = draw.scaled(costs)
    return simulate(workload, drawn, policy, estimated=costs, pace=draw.pace)


def _latencies_s(run: SimulatedRun) -> dict[str, float]:
    served = run.served
    ttft_s, e2el_s = (
        np.percentile(values[served], [50, 95]) for values in (run.ttft_s, run.e2el_s)
    )
    return dict(zip(LATENCIES, map(float, (*ttft_s, *e2el_s)), strict=True))


def _load_figures(run: SimulatedRun) -> dict[str, float]:
    kept = summary.summary(run)
    slots = int((run.passes.slots * run.passes.count).sum())
    seconds = {
        name.removesuffix("_ms") + "_s": value / 1e3
        for name, value in kept.items()
        if name.endswith("_ms")
    }
    return {
        "rows": float(run.passes.rows[run.passes.first_of_batch].mean()),
        "slots": slots,
        **{name: value for name, value in kept.items() if not name.endswith("_ms")},
        **{f"{part}_share": kept[f"{part}_tokens"] / slots for part in waste.LEDGER},
        **seconds,
    }


def largest_waste(frame: pd.DataFrame) -> pd.Series:
    """For each load, the part of the ledger that most was lost to, over all policies, in words."""
    lost = frame.groupby("load")[[f"{part}_share" for part in waste.WASTES]].mean()
    return lost.set_axis([part.replace("_", " ") for part in waste.WASTES], axis=1).idxmax(axis=1)


def steady_load(frame: pd.DataFrame) -> float:
    """The highest load up to which no row is saturated, or, where even the lowest has one that is,
    the lowest load."""
    saturated = frame.groupby("load")["saturated"].any().cummax()
    steady = saturated.index[~saturated]
    return float(steady.max() if len(steady) else saturated.index.min())


def distance_said(frame: pd.DataFrame, policy: str, low: float, high: float) -> str:
    """In words: fill of a policy, and how far its busy time is from the bound, at two loads."""
    mine = frame[frame["policy"] == policy].set_index("load")
    fill, far = mine["fill"], mine["busy_over_shape_bound"]
    return (
        f"{policy} from load {low:g} to {high:g}: fill from {fill[low]:.0%} to {fill[high]:.0%}, "
        f"distance to the bound from {far[low]:.2f} to {far[high]:.2f}"
    )


def laws(runs: pd.DataFrame, workload: Workload) -> Iterator[tuple[str, bool, str]]:
    """What has to hold of rows of `under_load` and of `over_bucket_sets`: its name, whether it
    does, and the evidence."""
    n = len(workload)
    once = runs["served"].eq(n).all() and (runs["rows"] * runs["batches"]).round().eq(n).all()
    yield "every request is served once", bool(once), f"{n} in each of {len(runs)} runs"
    tokens = workload.prompt_tokens.sum() + workload.output_tokens.sum()
    useful = runs["useful_tokens"]
    yield "tokens in = tokens out", bool(useful.eq(tokens).all()), f"{useful.unique()} of {tokens}"
    parts = runs[[f"{part}_tokens" for part in waste.LEDGER]].sum(axis=1)
    whole = bool(parts.eq(runs["slots"]).all())
    yield "useful + waste = computed", whole, f"{parts.sum():.0f} slots"
    fills, near = runs["fill"], float(runs["busy_over_shape_bound"].min())
    within = bool(fills.gt(0).all() and fills.le(1).all())
    yield "0 < fill <= 1", within, f"up to {fills.max():.3f}"
    yield "no run is below the bound of its buckets", near > 1 - 1e-9, f"nearest {near:.4f}"


def bars(frame: pd.DataFrame, loads: Sequence[float]) -> pd.DataFrame:
    """The rows of these loads, lowest first, with a group (the load) and a label (the policy)."""
    rows = frame[frame["load"].isin(loads)].sort_values("load", kind="stable")
    return rows.assign(group=[f"load {load:g}" for load in rows["load"]], label=rows["policy"])


def waste_by_bucket(run: StaticRun) -> pd.DataFrame:
    """What `metrics.waste.by_bucket` gives, and the ledger as shares of what the whole run
    computed."""
    frame = waste.by_bucket(waste.batches(run))
    computed = frame["computed"].sum()
    return frame.assign(**{f"{part}_share": frame[part] / computed for part in waste.LEDGER})


def bucket_sets(
    workload: Workload,
    batch_sizes: Iterable[int],
    k: int,
    *,
    smallest: tuple[int, int] = (STICK_TOKENS, 2),
) -> dict[str, tuple[Bucket, ...]]:
    """Sets of at most `k` buckets as other stacks make them, each fitting every request: small,
    middle and large batches, and the *diagonal*, where a longer prompt means a smaller batch; equal
    ones once. No prompt length and no output is below `smallest` (P, N), where a cost table
    begins."""
    prompts = np.maximum(workload.prompt_tokens, smallest[0])
    new_tokens = max(smallest[1], int(workload.max_tokens.max()))
    sizes = sorted(set(batch_sizes))
    small, middle, large = sizes[0], sizes[len(sizes) // 2], sizes[-1]
    doubled = [boundary for boundary in powers_of_two(prompts) if boundary >= smallest[0]][-k:]
    descending = [sizes[max(0, len(sizes) - 1 - place)] for place in range(len(doubled))]
    shapes = {f"powers of two, B {b}": [(b, p) for p in doubled] for b in (small, middle, large)}
    shapes["powers of two, diagonal"] = list(zip(descending, doubled, strict=True))
    shapes[f"percentiles, B {large}"] = [(large, boundary) for boundary in percentiles(prompts, k)]
    shapes |= {f"one shape, B {b}": [(b, p) for p in one(prompts)] for b in (small, large)}
    names: dict[tuple[Bucket, ...], str] = {}
    for name, sizes_of_set in shapes.items():
        names.setdefault(tuple(Bucket(b, p, new_tokens) for b, p in sizes_of_set), name)
    return {name: buckets for buckets, name in names.items()}


def over_bucket_sets(
    workload: Workload,
    model: CostModel,
    given: Iterable[Bucket],
    batch_sizes: Iterable[int],
    policy: Policy | None = None,
) -> tuple[pd.DataFrame, Choice]:
    """All requests at once on the given buckets, on the proved choice of as many, and on the sets
    of `bucket_sets` that the model has figures for; and that choice, whose bound no set goes below.

    One row per set: set, kind ("given", "optimum" or "baseline"), buckets, graphs, compile_s,
    shape_bound_s, and what `under_load` has of a run. All at once the engine never idles, so
    `busy_s` is the makespan.

    Raises ValueError for given buckets that the model has no figure for.
    """
    queued, yours = workload.with_arrivals("all"), price(given, model)
    baselines = bucket_sets(queued, batch_sizes, len(yours), smallest=model.smallest[1:])
    others = {
        name: priced for name, buckets in baselines.items() if (priced := _priced(buckets, model))
    }
    extra = [cost.bucket for cost in itertools.chain(yours, *others.values())]
    considered = priced_candidates(queued, model, batch_sizes, extra=extra)
    choice = choose_buckets(queued, considered, Limits(len(yours)))
    sets = {
        ("these buckets", "given"): yours,
        ("optimum for full batches", "optimum"): choice.costs,
    }
    sets |= {(name, "baseline"): costs for name, costs in others.items()}
    rows = [
        {"set": name, "kind": kind, **_of_set(queued, costs, policy)}
        for (name, kind), costs in sets.items()
    ]
    return pd.DataFrame(rows), choice


def _priced(buckets: Sequence[Bucket], model: CostModel) -> tuple[BucketCost, ...]:
    """Their costs; empty where the model has no figure for one of them."""
    try:
        return price(buckets, model)
    except ValueError:
        return ()


def _of_set(
    workload: Workload, costs: Sequence[BucketCost], policy: Policy | None
) -> dict[str, str | float]:
    return {
        "buckets": " ".join(str(cost.bucket) for cost in costs),
        "graphs": len(costs),
        "compile_s": sum(cost.compile_s for cost in costs),
        "shape_bound_s": shape_bound_s(workload, costs),
        **_load_figures(simulate(workload, costs, policy)),
    }


def disagreements(fill: Sequence[float], seconds: Sequence[float]) -> tuple[int, int]:
    """Pairs of runs of which the fuller one took longer, and all pairs that differ in both."""
    pairs = itertools.combinations(zip(fill, seconds, strict=True), 2)
    signs = [np.sign(f1 - f0) * np.sign(s1 - s0) for (f0, s0), (f1, s1) in pairs]
    return sum(int(sign > 0) for sign in signs), sum(int(sign != 0) for sign in signs)
