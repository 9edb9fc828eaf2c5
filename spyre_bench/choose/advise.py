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
ALIKE = 0.1  # relative; compile times this close are no reason for a choice
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
    policy: Policy  # that they were replayed under
    objective: str  # that was asked for, of `OBJECTIVES`
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
        by = _judged_by(frame, self.objective)
        unmet = (
            ["no set serves a request of the first half within the limits: device seconds decide"]
            if by != self.objective
            else []
        )
        # goodput counts those that are refused by itself
        alike, refusing = (
            (frame, []) if by == "goodput" else alike_served(frame, advised, self.fitted)
        )
        against = doubts(frame, advised, self.fitted, self.held_out, by)
        return "; ".join([*unmet, _against(alike, advised, by), *against, *refusing])


def alike_served(
    frame: pd.DataFrame, advised: str, fitted: Workload
) -> tuple[pd.DataFrame, list[str]]:
    """The contenders by name that refuse no more of the first half than the advised one, and of
    today's and other stacks' that do refuse more how many, in words: they have less to do, so that
    their seconds say nothing."""
    refused = frame["fitted_rejected"]
    more = refused > refused[advised]
    said = [
        f"{name} refuses {count:,} of the {len(fitted):,} requests of the first half"
        for name, count in refused[more & (frame["kind"] != "ours")].items()
    ]
    return frame[~more], said


def doubts(
    frame: pd.DataFrame,
    advised: str,
    fitted: Workload,
    held_out: Workload,
    by: str = "device_seconds",
) -> list[str]:
    """What speaks against an advice that the first half gave, in words: whom it refuses in the
    second half, what is better there `by` what it was chosen, whether anybody keeps up, and how
    many requests it was chosen by. `frame`: contenders by name."""
    said = []
    rejected = frame["held_out_rejected"]
    if refused := int(rejected[advised]):
        said.append(
            f"it refuses {refused:,} of the {len(held_out):,} requests of the second half, longer "
            f"than those that it was chosen by"
        )
    # a set that refuses more has less to do, but serves no more within the limits
    rows = frame if by == "goodput" else frame[rejected <= refused]
    seconds = _seconds(rows, "held_out", by)
    if float(seconds.min()) < float(seconds[advised]) * (1 - TIE):
        best = str(seconds.idxmin())
        better = f"takes {1 - float(seconds[best]) / float(seconds[advised]):.0%} less"
        if by == "goodput":
            rates = frame["held_out_goodput_rps"]
            better = (
                f"serves {rates[best]:.3g} requests/s within the limits, not {rates[advised]:.3g}"
            )
        said.append(
            f"on the second half {best} {better}, so the requests are too few, or too unlike each "
            f"other, to tell the two apart"
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
    return workload.only(
        model.covers(workload),
        f"every request is beyond the cost table, which spans {model.span}: measure longer "
        f"buckets, scale the lengths down (--length-scale), or extrapolate (--extrapolate)",
    )


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
    or most goodput under `goodput_ms` (where none has any, seconds decide); of those within `TIE`
    of it those that compile in least time, within `ALIKE`, and of these the lowest P95 of E2EL. The
    second half shows what that is worth on requests that were not looked at. With `covering`, its
    longest are: every set then takes all requests of both halves.

    Raises ValueError for an unknown objective, goodput without limits, and what `choose_buckets`
    refuses.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective {objective!r} is not known: use {' or '.join(OBJECTIVES)}")
    if objective == "goodput" and not goodput_ms:
        raise ValueError("goodput needs an SLO: give limits, for example --goodput e2el:5000")
    if goodput_ms and objective != "goodput":
        raise ValueError(
            f"limits of an SLO (--goodput) decide nothing where the objective is {objective}: add "
            f"--objective goodput, or leave them out"
        )
    if limits.warmup_budget_s is not None:
        model.require_known("compile_s", "a warmup budget (--warmup-budget)")
    if limits.memory_bytes is not None:
        model.require_known("memory_bytes", "a memory limit (--memory-gib)")
    policy = policy or Policy()
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
    return Advice(chosen, policy, objective, certificate, contenders, fitted, held_out)


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
    seconds = _seconds(rows, "fitted", _judged_by(contenders, objective))
    tied = seconds <= seconds.min() * (1 + TIE)
    if (kept := runs[rows.index] & fits[rows.index] & tied).any():
        return rows.index[kept][0]
    return of_tied(rows[tied])


def of_tied(rows: pd.DataFrame) -> Any:
    """The index of the one to take of contenders that are as good as each other: of those that
    compile in least time, within `ALIKE`, the one with the lowest P95 of E2EL."""
    quickest = rows[rows["compile_s"] <= rows["compile_s"].min() * (1 + ALIKE)]
    return quickest.sort_values("fitted_p95_e2el_s", kind="stable").index[0]


def _judged_by(contenders: pd.DataFrame, objective: str) -> str:
    """The objective; device seconds where it is goodput, and nobody has any to be told apart by."""
    unmet = objective == "goodput" and not contenders["fitted_goodput_rps"].any()
    return "device_seconds" if unmet else objective


def _seconds(frame: pd.DataFrame, half: str, by: str) -> pd.Series:
    """What contenders are judged by on a half, less being better: their device seconds, or the
    seconds between two requests that are served within the limits."""
    if by == "goodput":
        return 1 / frame[f"{half}_goodput_rps"].astype(float)
    return frame[f"{half}_busy_s"].astype(float)


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


def _against(frame: pd.DataFrame, advised: str, by: str) -> str:
    """The advised set beside the best on the first half `by` what it was chosen, or beside the best
    of the other stacks' schemes where it is that one itself."""
    if by == "goodput":
        return _rates_against(frame, advised)
    if advised == TODAY:
        return keeping(frame, "buckets")
    busy_s = _seconds(frame, "fitted", by)
    least = str(busy_s.idxmin())
    more = busy_s[advised] / busy_s[least] - 1
    if advised != least:
        tie = f"{advised} is within {more:.1%} of {least}{_why_of_tied(frame, advised, least)}"
        return tie if 0 <= more <= TIE else f"{advised} takes {more:.1%} more than {least}"
    scheme = _best_scheme(frame, advised, busy_s)
    if not scheme:
        return f"{advised} takes the fewest device seconds on the first half"
    return (
        f"{advised} takes {1 - busy_s[advised] / busy_s[scheme]:.0%} fewer device seconds on the "
        f"first half than {scheme}, the next scheme of another stack"
    )


def _rates_against(frame: pd.DataFrame, advised: str) -> str:
    """The same by goodput."""
    rates, seconds = frame["fitted_goodput_rps"], _seconds(frame, "fitted", "goodput")
    best = str(seconds.idxmin())
    said = f"{advised} serves {rates[advised]:.3g} requests/s of the first half within the limits"
    if advised == TODAY:
        return f"keep your buckets: {said}, {best} {rates[best]:.3g}"
    if advised != best:
        tied = seconds[advised] <= seconds[best] * (1 + TIE)
        why = _why_of_tied(frame, advised, best) if tied else ""
        return f"{said}, {best} {rates[best]:.3g}{why}"
    scheme = _best_scheme(frame, advised, seconds)
    other = f"; {scheme}, the next scheme of another stack, {rates[scheme]:.3g}" if scheme else ""
    return f"{said}, the most{other}"


def _best_scheme(frame: pd.DataFrame, advised: str, seconds: pd.Series) -> str:
    """Of other stacks the best but the advised one; "" where there is none."""
    others = seconds[(frame["kind"] == "baseline") & (frame.index != advised)]
    return str(others.idxmin()) if len(others) else ""


def _why_of_tied(frame: pd.DataFrame, advised: str, best: str) -> str:
    """Why the advised one was taken of two that are as good as each other (`of_tied`)."""
    compile_s = frame["compile_s"]
    alike = compile_s[best] <= compile_s[advised] * (1 + ALIKE)
    if alike and (p95_s := frame["fitted_p95_e2el_s"])[advised] < p95_s[best]:
        why = f", compiles as long within {ALIKE:.0%}, and its P95 of E2EL is "
        why += f"{p95_s[advised]:,.3g} s, not {p95_s[best]:,.3g} s"
    else:
        less_s = compile_s[best] - compile_s[advised]
        why = f" and compiles {abs(less_s):,.0f} s {'less' if less_s >= 0 else 'more'}"
    few = advised == "one shape"
    return f"{why}{': at this load shapes hardly matter' if few else ', a tie'}"


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


@dataclass(frozen=True)
class Beside:
    """The advised set's device seconds per request of the second half, beside those of the best
    scheme of another stack, in words and figures."""

    ours: str
    ours_s: float
    scheme: str  # "" where the table prices no other
    scheme_s: float  # nan then

    @classmethod
    def of(cls, replayed: pd.DataFrame) -> Beside:
        """Of what `per_request` gives."""
        ours = replayed[replayed["advised"]].iloc[0]
        others = replayed[(replayed["kind"] == "baseline") & ~replayed["advised"]]
        others = others.dropna(subset="held_out_busy_s").nsmallest(1, "held_out_busy_s")
        scheme = str(others["name"].item()) if len(others) else ""
        scheme_s = float(others["held_out_busy_s"].item()) if len(others) else math.nan
        return cls(ours["name"], ours["held_out_busy_s"], scheme, scheme_s)

    @property
    def saving(self) -> float:
        """Share of the scheme's seconds; below 0 where the advised set takes more, nan where there
        is no scheme."""
        return 1 - self.ours_s / self.scheme_s

    @property
    def title(self) -> str:
        other = f"; best other scheme, {self.scheme}: {self.scheme_s:.3g}" if self.scheme else ""
        return f"Advised: {self.ours}, {self.ours_s:.3g} device seconds per request{other}"

    def __str__(self) -> str:
        """What the advised set takes."""
        if not self.scheme:
            return f"{self.ours_s:.3g} device seconds per request; no other scheme is priced"
        share = f"{abs(self.saving):.0%}"
        less = f"{share} {'fewer' if self.saving > 0 else 'more'} device seconds than"
        if share == "0%":
            less = "as many device seconds as"
        return f"{less} the best other scheme ({self.scheme})"

    @property
    def unless(self) -> str:
        """What would change the advice."""
        if not self.scheme:
            return "another scheme, once the cost table prices it, takes fewer device seconds."
        if self.saving <= 0:
            return (
                f"requests like the second half, not the first, by which the set was chosen: there "
                f"{self.scheme} takes fewer device seconds."
            )
        longer = 1 / (1 - self.saving) - 1
        return f"passes of the advised set that take {longer:.0%} longer than priced."
