"""Many cards: large engines or many engines? Tensor parallel against replicas on the card model.

A number of cards is divided into engines of `tp` cards behind one router. Every division serves
the same draws, as many requests per card, under the same SLO; what counts is its capacity, the
largest rate of arrivals at which most requests stay within it. Nothing here is measured: each
figure is given at every end of the card's parameters, and `sensitivity` moves one parameter at a
time to find those that decide.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from spyre_bench.choose.advise import priced_candidates
from spyre_bench.choose.optimize import Choice, Limits, choose_buckets
from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.card import SpyreCost
from spyre_bench.cost.card_parameters import ENDS, SpyreCard
from spyre_bench.metrics import latency, summary
from spyre_bench.model_sizes import LARGEST_TP, ModelSizes
from spyre_bench.shapes import STICK_TOKENS, Bucket
from spyre_bench.simulate.result import SimulatedRun
from spyre_bench.studies.capacity import STEP, Service
from spyre_bench.workload.workload import Workload

BATCH_SIZES = (1, 2, 4, 8, 16)
TIE = 0.05  # nearer capacities count as equal: six draws of 200 to 400 a card spread by 2 to 6 %
# Enough for a few buckets, and quick.
CANDIDATES: dict[str, Any] = {"prompt_lengths": 6, "new_tokens": 3}


@dataclass(frozen=True)
class Deployment:
    """`cards` divided into engines of `tp` cards, and the sets of buckets that they could compile;
    or, where `refused` is a sentence, why that cannot be: without a `cost` there is no such engine
    of any kind of batching."""

    cards: int
    tp: int
    cost: SpyreCost | None = None
    sets: tuple[tuple[Bucket, ...], ...] = ()
    refused: str = ""

    @property
    def replicas(self) -> int:
        return self.cards // self.tp

    @property
    def label(self) -> str:
        """Such as "2 × TP 4": replicas times cards of each."""
        return f"{self.replicas} × TP {self.tp}"

    @property
    def names(self) -> dict[str, int | str]:
        """Its first columns in every table."""
        return {
            "cards": self.cards,
            "tp": self.tp,
            "replicas": self.replicas,
            "deployment": self.label,
        }

    def costs(self, end: str = "value") -> list[tuple[BucketCost, ...]]:
        """Of each of its sets at one end of the card's parameters."""
        if self.cost is None:
            return []
        return [tuple(self.cost.at(end, bucket) for bucket in buckets) for buckets in self.sets]

    def capacity(self, service: Service, end: str = "value") -> tuple[float, tuple[Bucket, ...]]:
        """The capacity in requests/s with the set that has the largest, and that set."""
        most, best_set = 0.0, self.sets[0]
        for buckets, costs in zip(self.sets, self.costs(end), strict=True):
            # one run settles for most sets that they have no more
            share = service.good_share(self.cards, costs, self.replicas, most * STEP) if most else 1
            if share < service.share:
                continue
            rps = service.capacity_rps(self.cards, costs, self.replicas)
            if rps > most:
                most, best_set = rps, buckets
        return most, best_set


# --- which there are ------------------------------------------------------------------------------


def divisions(cards: int) -> tuple[tuple[int, int], ...]:
    """(tp, replicas) with tp · replicas = cards, from replicas alone to one engine, none with more
    cards than a cluster has."""
    if cards < 1:
        raise ValueError(f"{cards} cards are too few: use 1 or more")
    most = min(cards, LARGEST_TP)
    return tuple((tp, cards // tp) for tp in range(1, most + 1) if cards % tp == 0)


def propose(
    model: ModelSizes,
    cards: Iterable[int],
    service: Service,
    *,
    dtype: str = "fp16",
    card: SpyreCard | None = None,
    k: int = 4,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    buckets: Sequence[Bucket] = (),
) -> list[Deployment]:
    """Every division of every number of cards, those that cannot be with the reason.

    What is held fair: engines of every size choose from sets of at most `k` buckets, for each
    largest batch size the proved optimum for full batches at the nominal values of the parameters
    (`optimize.choose_buckets`); wherever capacities are compared, each has the set that serves it
    best there. Or the `buckets` given are compiled everywhere.
    """
    numbers, deployments = sorted(set(cards)), []
    engines: dict[int, Deployment] = {}  # of one engine each
    for number in numbers:
        for tp, _ in divisions(number):
            if tp not in engines:
                settings = (model, tp, dtype, card or SpyreCard())
                engines[tp] = _engine(settings, service.workload, k, batch_sizes, tuple(buckets))
            deployments.append(replace(engines[tp], cards=number))
    return deployments


def _engine(
    settings: tuple[ModelSizes, int, str, SpyreCard],
    workload: Workload,
    k: int,
    batch_sizes: Sequence[int],
    given: tuple[Bucket, ...],
) -> Deployment:
    """One engine with its sets of buckets, or with those given, or why there is none."""
    tp, cost = settings[1], None
    try:
        cost = SpyreCost(*settings)
        if given:
            return Deployment(tp, tp, cost, (tuple(cost.of(bucket).bucket for bucket in given),))
        choices = _choices(workload, cost, Limits(k), batch_sizes)
    except ValueError as refusal:
        return Deployment(tp, tp, cost, refused=str(refusal))
    return Deployment(tp, tp, cost, tuple(dict.fromkeys(choice.buckets for choice in choices)))


def _choices(
    workload: Workload, cost: SpyreCost, limits: Limits, batch_sizes: Sequence[int]
) -> list[Choice]:
    """The optimum for full batches with each largest batch size. ValueError where there is none at
    all, with the reason at the smallest."""
    choices, refusals = [], []
    sizes = sorted(set(batch_sizes))
    for number in range(1, len(sizes) + 1):
        try:
            priced = priced_candidates(workload, cost, sizes[:number], **CANDIDATES)
            choices.append(choose_buckets(workload, priced, limits, gap=1e-2))
        except ValueError as refusal:  # too large for the card, and so are larger ones
            refusals.append(refusal)
    if not choices:
        raise refusals[0]
    return choices


def possible(deployments: Iterable[Deployment], cards: int) -> list[Deployment]:
    """Those of so many cards that are not refused. Raises ValueError with the reasons where all
    are."""
    there = [it for it in deployments if it.cards == cards]
    found = [it for it in there if not it.refused]
    if not found:
        why = "; ".join(f"{it.label}: {it.refused}" for it in there)
        raise ValueError(f"no division of {cards} cards serves these requests: {why}")
    return found


def listed(deployments: Iterable[Deployment]) -> pd.DataFrame:
    """One row per deployment: cards, tp, replicas, deployment, sets (of buckets to choose from),
    memory_gb (of a card with the largest of all these buckets, at the nominal values), refused (why
    it cannot be; empty where it can)."""
    return pd.DataFrame(
        {
            **deployment.names,
            "sets": len(deployment.sets),
            "memory_gb": _memory_gb(deployment),
            "refused": deployment.refused,
        }
        for deployment in deployments
    )


def _memory_gb(deployment: Deployment) -> float:
    costs = itertools.chain(*deployment.costs()) if deployment.sets else ()
    return max((cost.memory_bytes for cost in costs), default=math.nan) / 1e9


# --- what each of them serves ---------------------------------------------------------------------


def capacities(deployments: Iterable[Deployment], service: Service) -> pd.DataFrame:
    """One row per deployment and end of the parameters: cards, tp, replicas, deployment, end,
    capacity_rps, capacity_rps_a_card (requests/s; nan where refused), buckets (the set that has
    it), refused."""
    rows = []
    for deployment, end in at_ends(deployments):
        rps, best_set = (math.nan, ()) if deployment.refused else deployment.capacity(service, end)
        figures = {"capacity_rps": rps, "capacity_rps_a_card": rps / deployment.cards}
        names = " ".join(map(str, best_set))
        rows.append(
            {
                **deployment.names,
                "end": end,
                **figures,
                "buckets": names,
                "refused": deployment.refused,
            }
        )
    return pd.DataFrame(rows)


def replays(
    deployments: Iterable[Deployment], service: Service, rate_rps_a_card: float
) -> pd.DataFrame:
    """One row per deployment and end, all at the same rate per card, each with the set of buckets
    that has most goodput there: cards, tp, replicas, deployment, end, rate_rps, throughput_rps,
    output_tokens_s, median and p99 of ttft and tpot in seconds (`p99_ttft_s`), goodput_rps,
    goodput_rps_a_card, utilisation, saturated, refused. Figures are missing where it is refused."""
    rows = []
    for deployment, end in at_ends(deployments):
        rate_rps = rate_rps_a_card * deployment.cards
        row: dict[str, Any] = {**deployment.names, "end": end, "rate_rps": rate_rps}
        if not deployment.refused:
            replayed = [
                _replay_figures(deployment, service, costs, rate_rps)
                for costs in deployment.costs(end)
            ]
            row |= max(replayed, key=lambda figures: figures["goodput_rps"])
        rows.append(row | {"refused": deployment.refused})
    return pd.DataFrame(rows)


def _replay_figures(
    deployment: Deployment, service: Service, costs: Sequence[BucketCost], rate_rps: float
) -> dict[str, float]:
    run = service.replay(deployment.cards, costs, deployment.replicas, rate_rps)
    return run_figures(run, deployment.cards, service.limits_ms)


def run_figures(run: SimulatedRun, cards: int, limits_ms: Mapping[str, float]) -> dict[str, float]:
    """What a table of deployments has of a run on so many cards; of one that served nobody its
    throughputs alone, which are 0."""
    seconds, statistics = summary.duration_s(run), latency.latencies(run, (99,))
    if not seconds:
        return {"throughput_rps": 0.0, "goodput_rps": 0.0, "goodput_rps_a_card": 0.0}
    goodput_rps = latency.good_requests(run, limits_ms) / seconds
    tokens = run.workload.output_tokens[run.served].sum(dtype=np.int64)
    return {
        "throughput_rps": float(run.served.sum()) / seconds,
        "output_tokens_s": float(tokens) / seconds,
        **{
            f"{of}_{name}_s": value / 1e3
            for name in ("ttft", "tpot")
            for of, value in (
                ("median", statistics[name].median_ms),
                ("p99", statistics[name].percentiles_ms[99]),
            )
        },
        "goodput_rps": goodput_rps,
        "goodput_rps_a_card": goodput_rps / cards,
        "utilisation": summary.utilisation(run),
        "saturated": bool(summary.saturation(run)),
    }


def at_ends(deployments: Iterable[Deployment]) -> Iterator[tuple[Deployment, str]]:
    """Each with every end of the card's parameters."""
    return ((deployment, end) for deployment in deployments for end in ENDS)


def best(capacity: pd.DataFrame) -> pd.DataFrame:
    """Of `capacities`, one row per number of cards and end: cards, end, deployment, tp and
    capacity_rps_a_card of the one that serves most, ties going to the smaller engines, and `near`,
    the others that are no more than `TIE` below it. "none" where nothing has a capacity."""
    rows = []
    for (cards, end), rivals in capacity.groupby(["cards", "end"], sort=False):
        rps = rivals.set_index("deployment")["capacity_rps_a_card"].fillna(0.0)
        top, most = rps.idxmax(), float(rps.max())
        near = rps.index[(rps >= (1 - TIE) * most) & (rps.index != top)] if most else ()
        tp = int(rivals.loc[rivals["deployment"] == top, "tp"].iloc[0])
        rows.append(
            {"cards": cards, "end": end, "deployment": top if most else "none"}
            | {"tp": tp if most else 0, "capacity_rps_a_card": most, "near": ", ".join(near)}
        )
    return pd.DataFrame(rows)


def laws(
    capacity: pd.DataFrame, shares: pd.DataFrame, run: SimulatedRun
) -> Iterator[tuple[str, bool, str]]:
    """What has to hold of `capacities`, of `all_reduce_shares` and of a run: its name, whether it
    does, and the evidence."""
    whole = capacity["tp"] * capacity["replicas"] == capacity["cards"]
    yield "engines x cards of each = cards", bool(whole.all()), f"{len(capacity)} rows"
    rows = ["cards", "deployment"]
    ends = capacity.pivot(index=rows, columns="end", values="capacity_rps").dropna()
    ordered = (ends["slow"] <= ends["value"]) & (ends["value"] <= ends["fast"])
    yield "slow <= value <= fast", bool(ordered.all()), f"{ordered.sum()} of {len(ordered)}"
    ran, lost = run.passes.members_of("prefill"), int((~run.served).sum())
    once = len(set(ran)) == len(ran) == len(run.workload) - lost
    yield "every request ran once or was refused", once, f"{len(ran)} ran, {lost} refused"
    bounded = shares["low_share"].ge(0).all() and shares["high_share"].lt(1).all()
    alone = shares.loc[shares["tp"] == 1, "high_share"].eq(0).all()
    evidence = f"up to {shares['high_share'].max():.0%}"
    yield "one card reduces nothing", bool(bounded and alone), evidence


# --- where the gain goes --------------------------------------------------------------------------


def typical_bucket(workload: Workload, batch_size: int) -> Bucket:
    """A batch of median prompts, in sticks of 64 tokens, and median max_tokens."""
    prompt, output = np.median(workload.prompt_tokens), np.median(workload.max_tokens)
    sticks = math.ceil(prompt / STICK_TOKENS)
    return Bucket(batch_size, sticks * STICK_TOKENS, max(2, math.ceil(output)))


def all_reduce_shares(costs: Iterable[SpyreCost], bucket: Bucket) -> pd.DataFrame:
    """Seconds of both passes of a bucket and what all-reduces take of them, one row per number of
    cards and pass: tp, pass ("prefill", "decode"), low_s, value_s, high_s (of the pass),
    low_share, value_share, high_share. The low share is with the all-reduce at its optimistic end
    and all else at its pessimistic one, the high share the other way round."""
    rows = []
    for cost in costs:
        cost.require(bucket)
        passes = [cost.passes(end) for end in ENDS]
        for name, rows_per_pass in (
            ("prefill", bucket.batch_size * bucket.prompt_length),
            ("decode", bucket.batch_size),
        ):
            all_s = [getattr(at_end, f"{name}_s")(bucket) for at_end in passes]
            reduce_s = [cost.model.layers * at_end.reduces_s(rows_per_pass) for at_end in passes]
            rest_s = [whole - part for whole, part in zip(all_s, reduce_s, strict=True)]
            shares = [
                part / (part + rest) for part, rest in zip(reduce_s, reversed(rest_s), strict=True)
            ]
            rows.append(
                {"tp": cost.tp, "pass": name}
                | dict(zip(("low_s", "value_s", "high_s"), all_s, strict=True))
                | dict(zip(("low_share", "value_share", "high_share"), shares, strict=True))
            )
    return pd.DataFrame(rows)
