"""Many cards: large engines or many engines? Tensor parallel against replicas on the card model.

A number of cards is divided into engines of `tp` cards behind one router. Every division serves
the same draws, as many requests per card, under the same SLO; what counts is its
capacity, the largest rate of arrivals at which most requests stay within them. Nothing here is
measured: each figure is given at every end of the card's parameters, and `sensitivity` moves one
parameter at a time to find those that decide.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from spyre_bench.choose.advise import priced_candidates
from spyre_bench.choose.optimize import Choice, Limits, choose_buckets
from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.card import SpyreCost
from spyre_bench.cost.card_parameters import ENDS, LIMITS, SpyreCard
from spyre_bench.metrics import summary
from spyre_bench.metrics.bounds import shape_bound_s
from spyre_bench.model_sizes import LARGEST_TP, ModelSizes
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import STICK_TOKENS, Bucket
from spyre_bench.simulate.result import SimulatedRun
from spyre_bench.simulate.static import simulate
from spyre_bench.studies.under_load import at_rate
from spyre_bench.workload.workload import Workload

BATCH_SIZES = (1, 2, 4, 8, 16)
STEP = 1.02  # from one rate that is tried to the next
LEAST = 1 / 256  # of the rate with full batches: a capacity below counts as 0
TIE = 0.05  # nearer capacities count as equal: six draws of 200 to 400 a card spread by 2 to 6 %
# Enough for a few buckets, and quick.
CANDIDATES: dict[str, Any] = {"prompt_lengths": 6, "new_tokens": 3}
UNTIMED = (*LIMITS, "compile_s")  # parameters that no pass depends on


@dataclass(frozen=True)
class Service:
    """What every deployment has to do: these requests, within these limits.

    `limits_ms` are on ttft, tpot and e2el; `share` of the requests must be within all of them. The
    workload needs a pattern of arrivals, and `requests_a_card` requests for each card.

    Raises ValueError for no limit, or for a share or a number of requests that cannot be.
    """

    workload: Workload
    limits_ms: Mapping[str, float]
    requests_a_card: int
    policy: Policy = field(default_factory=Policy)
    router: str = "least_loaded"
    share: float = 0.9

    def __post_init__(self) -> None:
        summary.require_limits(self.limits_ms)
        if not self.limits_ms:
            raise ValueError(
                "a capacity needs an SLO: give limits on latency, such as ttft 30000 ms"
            )
        if not 0 < self.share <= 1:
            raise ValueError(f"share {self.share} of the requests is not above 0 and at most 1")
        if self.requests_a_card < 1:
            raise ValueError(f"requests_a_card {self.requests_a_card} is below 1: use 1 or more")

    def requests(self, cards: int) -> Workload:
        """The first requests of the workload, as many per card, so that more cards do not mean
        shorter runs. Raises ValueError where there are fewer."""
        return self.workload.head(self.requests_a_card * cards)

    def replay(
        self, cards: int, costs: Sequence[BucketCost], replicas: int, rate_rps: float
    ) -> SimulatedRun:
        """The run at a rate in requests/s."""
        requests = at_rate(self.requests(cards), rate_rps)
        return simulate(requests, costs, self.policy, replicas=replicas, router=self.router)

    def good_share(
        self, cards: int, costs: Sequence[BucketCost], replicas: int, rate_rps: float
    ) -> float:
        """Of all requests, those within every limit; one that no bucket takes is not."""
        run = self.replay(cards, costs, replicas, rate_rps)
        return summary.good_requests(run, self.limits_ms) / len(run.workload)

    def rates(self, cards: int, costs: Sequence[BucketCost], replicas: int) -> np.ndarray:
        """The rates to try, in steps of 2 %: from 1/256 of what full batches would sustain for ever
        to all of it. Empty where no bucket takes a request."""
        requests = self.requests(cards)
        served_s = shape_bound_s(requests, costs) / replicas
        if not served_s:
            return np.zeros(0)
        tried = 1 + math.ceil(math.log(1 / LEAST, STEP))
        return np.geomspace(LEAST, 1, tried) * len(requests) / served_s

    def capacity_rps(self, cards: int, costs: Sequence[BucketCost], replicas: int) -> float:
        """The largest of the `rates` at which `share` of the requests are within the limits; 0
        where not even the smallest is.

        Found by bisection. The share need not fall with every step of the rate, so this is where it
        crosses: the next rate fails, a few above it might not.
        """
        rates = self.rates(cards, costs, replicas)

        def fails(rate_rps: float) -> bool:
            return self.good_share(cards, costs, replicas, rate_rps) < self.share

        failing = bisect_left(rates, True, key=fails)
        return float(rates[failing - 1]) if failing else 0.0


@dataclass(frozen=True)
class Deployment:
    """`cards` divided into engines of `tp` cards, and the sets of buckets that they could compile;
    or, where `refused` is a sentence, why that cannot be."""

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
    tp = settings[1]
    try:
        cost = SpyreCost(*settings)
        if given:
            return Deployment(tp, tp, cost, (tuple(cost.of(bucket).bucket for bucket in given),))
        choices = _choices(workload, cost, Limits(k), batch_sizes)
    except ValueError as refusal:
        return Deployment(tp, tp, refused=str(refusal))
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


def listed(deployments: Iterable[Deployment]) -> pd.DataFrame:
    """One row per deployment: cards, tp, replicas, deployment, sets (of buckets to choose from),
    memory_gb (of a card with the largest of all these buckets, at the nominal values), refused (why
    it cannot be; empty where it can)."""
    return pd.DataFrame(
        {
            **_names(deployment),
            "sets": len(deployment.sets),
            "memory_gb": _memory_gb(deployment),
            "refused": deployment.refused,
        }
        for deployment in deployments
    )


def _memory_gb(deployment: Deployment) -> float:
    costs = itertools.chain(*deployment.costs()) if deployment.sets else ()
    return max((cost.memory_bytes for cost in costs), default=math.nan) / 1e9


def _names(deployment: Deployment) -> dict[str, int | str]:
    return {
        "cards": deployment.cards,
        "tp": deployment.tp,
        "replicas": deployment.replicas,
        "deployment": deployment.label,
    }


# --- what each of them serves ---------------------------------------------------------------------


def capacities(deployments: Iterable[Deployment], service: Service) -> pd.DataFrame:
    """One row per deployment and end of the parameters: cards, tp, replicas, deployment, end,
    capacity_rps, capacity_rps_a_card (requests/s; nan where refused), buckets (the set that has
    it), refused."""
    rows = []
    for deployment, end in _at_ends(deployments):
        rps, best_set = (math.nan, ()) if deployment.refused else deployment.capacity(service, end)
        figures = {"capacity_rps": rps, "capacity_rps_a_card": rps / deployment.cards}
        names = " ".join(map(str, best_set))
        rows.append(
            {
                **_names(deployment),
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
    for deployment, end in _at_ends(deployments):
        rate_rps = rate_rps_a_card * deployment.cards
        row: dict[str, Any] = {**_names(deployment), "end": end, "rate_rps": rate_rps}
        if not deployment.refused:
            found = [
                _replay_figures(deployment, service, costs, rate_rps)
                for costs in deployment.costs(end)
            ]
            row |= max(found, key=lambda figures: figures["goodput_rps"])
        rows.append(row | {"refused": deployment.refused})
    return pd.DataFrame(rows)


def _replay_figures(
    deployment: Deployment, service: Service, costs: Sequence[BucketCost], rate_rps: float
) -> dict[str, float]:
    cards, limits_ms = deployment.cards, service.limits_ms
    run = service.replay(cards, costs, deployment.replicas, rate_rps)
    seconds, latency = summary.duration_s(run), summary.latencies(run, (99,))
    if not seconds:
        return {"throughput_rps": 0.0, "goodput_rps": 0.0, "goodput_rps_a_card": 0.0}
    goodput_rps = summary.good_requests(run, limits_ms) / seconds
    tokens = run.workload.output_tokens[run.served].sum(dtype=np.int64)
    return {
        "throughput_rps": float(run.served.sum()) / seconds,
        "output_tokens_s": float(tokens) / seconds,
        **{
            f"{of}_{name}_s": value / 1e3
            for name in ("ttft", "tpot")
            for of, value in (
                ("median", latency[name].median_ms),
                ("p99", latency[name].percentiles_ms[99]),
            )
        },
        "goodput_rps": goodput_rps,
        "goodput_rps_a_card": goodput_rps / cards,
        "utilisation": summary.utilisation(run),
        "saturated": bool(summary.saturation(run)),
    }


def _at_ends(deployments: Iterable[Deployment]) -> Iterator[tuple[Deployment, str]]:
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


# --- where the gain goes --------------------------------------------------------------------------


def typical_bucket(workload: Workload, batch_size: int) -> Bucket:
    """A batch of median prompts, in sticks of 64 tokens, and median max_tokens."""
    prompt, output = np.median(workload.prompt_tokens), np.median(workload.max_tokens)
    sticks = math.ceil(prompt / STICK_TOKENS)
    return Bucket(batch_size, sticks * STICK_TOKENS, max(2, math.ceil(output)))


def all_reduce_shares(costs: Iterable[SpyreCost], bucket: Bucket) -> pd.DataFrame:
    """Seconds of both passes of a bucket and what all-reduces take of them, one row per number of
    cards and pass: tp, pass ("prefill", "decode"), low_s, value_s, high_s (of the pass),
    low_share, value_share, high_share. The low share is with the all-reduce at its fast end and
    all else at its slow one, the high share the other way round."""
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


# --- what would have to be measured ---------------------------------------------------------------


def sensitivity(deployments: Iterable[Deployment], service: Service) -> pd.DataFrame:
    """Capacities with one parameter of the card moved to one of its ends and all others at their
    value, each deployment with the set of buckets that serves it best there.

    One row per parameter, end and deployment that is not refused: parameter, unit, confidence, end
    ("fast", "slow"), number (of the parameter), cards, tp, replicas, deployment,
    capacity_rps_a_card, and base_rps_a_card, with nothing moved.
    """
    rows = []
    for deployment in deployments:
        if deployment.cost is None:  # it is refused
            continue
        base, (base_rps, _) = deployment.costs(), deployment.capacity(service)
        for name, end, card in _moved(deployment.cost.card):
            there = replace(deployment, cost=replace(deployment.cost, card=card))
            moves = there.costs() != base  # else it plays no part, as an all-reduce on one card
            rps = there.capacity(service)[0] if moves else base_rps
            parameter = getattr(deployment.cost.card, name)
            rows.append(
                {"parameter": name, "unit": parameter.unit, "confidence": parameter.confidence}
                | {"end": end, "number": getattr(parameter, end), **_names(deployment)}
                | {"capacity_rps_a_card": rps / deployment.cards}
                | {"base_rps_a_card": base_rps / deployment.cards}
            )
    return pd.DataFrame(rows)


def _moved(card: SpyreCard) -> Iterator[tuple[str, str, SpyreCard]]:
    for parameter in fields(card):
        known = getattr(card, parameter.name)
        if parameter.name not in UNTIMED and known.fast != known.slow:
            for end in ("fast", "slow"):
                yield parameter.name, end, card.fixed(**{parameter.name: getattr(known, end)})


def tornado(moved: pd.DataFrame) -> pd.DataFrame:
    """By how much the winner of `sensitivity` leads as each parameter moves, the widest first.

    The winner is the deployment with the largest capacity while nothing is moved, ties going to
    the smaller engines. One row per parameter: parameter, unit, confidence, fast and slow (its
    numbers), winner, base_lead, fast_lead and slow_lead (requests/s per card over the best other;
    below 0 it has lost), fast_winner, slow_winner, changes (another leads by more than `TIE`).
    Parameters that move no lead have no row.

    Raises ValueError for fewer than two deployments, or for several numbers of cards.
    """
    if moved.empty or moved["deployment"].nunique() < 2 or moved["cards"].nunique() > 1:
        raise ValueError(
            "a tornado compares two deployments or more of one number of cards: give these"
        )
    base = moved.groupby("deployment", sort=False)["base_rps_a_card"].first()
    winner = str(base.idxmax())
    rows = []
    for name, moves in moved.groupby("parameter", sort=False):
        row = {"parameter": name, **moves[["unit", "confidence"]].iloc[0]}
        row |= {"winner": winner, "base_lead": _lead(base, winner), "changes": False}
        for end, at in moves.groupby("end", sort=False):
            rps = at.set_index("deployment")["capacity_rps_a_card"]
            lead = _lead(rps, winner)
            row |= {end: at["number"].iloc[0], f"{end}_lead": lead, f"{end}_winner": rps.idxmax()}
            row["changes"] |= bool(lead < -TIE * rps.max())
        rows.append(row)
    frame = pd.DataFrame(rows)
    leads = frame[["base_lead", "fast_lead", "slow_lead"]]
    frame["width"] = leads.max(axis=1) - leads.min(axis=1)
    frame = frame[frame["width"] > 0].sort_values("width", ascending=False, kind="stable")
    return frame.drop(columns="width").reset_index(drop=True)


def _lead(rps: pd.Series, winner: str) -> float:
    return float(rps[winner] - rps.drop(winner).max())
