"""Better buckets for a deployment that runs: what its own cost over the time of its log, what
others would have cost on the same requests, and how sure that is. `tune_shapes` does it for
continuous batching."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from spyre_bench.choose.advise import TIE, Advice, advise
from spyre_bench.choose.advise_shapes import ShapeAdvice
from spyre_bench.choose.optimize import Limits
from spyre_bench.cost.bucket_cost import BucketCost, CostModel
from spyre_bench.cost.rescaled import Rescaled
from spyre_bench.cost.spread import BAND, Draw
from spyre_bench.metrics import summary, waste
from spyre_bench.metrics.latency import latencies
from spyre_bench.metrics.served import Served
from spyre_bench.policy.static import Policy
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import Bucket
from spyre_bench.simulate.result import SimulatedRun
from spyre_bench.simulate.static import simulate
from spyre_bench.workload.workload import Workload

FEWEST = 20  # requests, of which halves still say something
APART = 0.1
"""How far shapes are from the proportions of a table of another machine, of the logarithm, before
a log has shown any; counts as one shape."""


@dataclass(frozen=True)
class Figures:
    """Of one set of buckets, or of shapes, on the requests of the log."""

    compiled: tuple[Bucket, ...] | ShapeSet
    compile_s: float
    busy_s: float
    p95_e2el_s: float
    fill: float
    rejected: int


@dataclass(frozen=True)
class Saving:
    """The share of a figure that goes, 0.1 a tenth; below 0 it grows. Without a spread of the
    costs there are no ends."""

    point: float
    low: float | None = None
    high: float | None = None

    @property
    def sure(self) -> bool:
        return self.low is not None and self.low > 0

    def __str__(self) -> str:
        ends = "" if self.low is None else f" (P5 to P95: {self.low:.0%} to {self.high:.0%})"
        return f"{self.point:.1%}{ends}"


@dataclass(frozen=True)
class Tuning:
    """A deployment's buckets beside those that its requests ask for."""

    requests: int
    span_s: float
    current: Figures | None  # None: nobody said which they are
    measured_busy_s: float | None  # of the log itself, where it is one of passes
    new: Figures
    advice: Advice | ShapeAdvice
    saving: Saving | None  # of busy device seconds, on the requests that today's serve
    saving_p95: Saving | None  # of the P95 of the time to the last token, on the same
    held_out: Saving | None  # of busy seconds on those of the second half; a point
    source: str  # where the interval is from, in words
    what: str = "buckets"  # that are compiled, or "shapes"

    @property
    def keeps(self) -> bool:
        """Whether the deployment's own buckets are to stay: no saving is sure, or none matters."""
        if self.current is None or self.current.rejected > self.new.rejected:
            return False
        surely = self.saving is not None and self.saving.sure and self.matters
        return self.current.compiled == self.new.compiled or not surely

    @property
    def matters(self) -> bool:
        """Whether others save `TIE` of device seconds or of the P95 of E2EL, below which costs are
        not known well enough to tell."""
        savings = (self.saving, self.saving_p95)
        return any(saving is not None and saving.point >= TIE for saving in savings)

    @property
    def advised(self) -> Figures:
        return self.current if self.keeps and self.current else self.new

    @property
    def verdict(self) -> str:
        """One sentence, in words."""
        if self.current is None:
            return "no buckets of today to compare with: say --bucket for each of them"
        if self.current.compiled == self.new.compiled:
            return (
                f"keep your {self.what}: no others within the limits are better on these requests"
            )
        longer_s = self.new.compile_s - self.current.compile_s
        start = "start-up compiles as long"
        if abs(longer_s) >= 0.5:
            start = f"start-up compiles {abs(longer_s):,.0f} s {'more' if longer_s > 0 else 'less'}"
        if self.saving_p95 is not None and self.saving_p95.point <= -TIE:
            start += f"; P95 of E2EL grows by {-self.saving_p95.point:.0%}"
        if self.keeps:
            if not self.matters:
                return (
                    f"keep your {self.what}, it does not matter: others would save {self.saving} "
                    f"of device seconds, and below {TIE:.0%} costs are not known well enough to "
                    f"tell; {start}"
                )
            unsure = self.saving is None or self.saving.low is None
            why = "but the costs have no spread to say how sure that is" if unsure else "not surely"
            return (
                f"keep your {self.what}: others would save {self.saving} of device seconds, {why}; "
                f"{start}"
            )
        if self.saving is None:
            return (
                f"change: your {self.what} serve none of these {self.requests:,} requests; {start}"
            )
        seconds = f"device seconds fall by {self.saving}"
        if not self.current.rejected:
            return f"change: {seconds}; {start}"
        if self.saving.point < 0:
            seconds = f"device seconds grow (a saving of {self.saving})"
        return (
            f"change: {self.current.rejected:,} of {self.requests:,} requests are served that your "
            f"{self.what} refuse; for the others {seconds}; {start}"
        )


def of_log(served: Served, base: CostModel, policy: Policy) -> Rescaled:
    """The costs of a deployment that was logged: those of `base` in the proportion of what its
    passes took.

    What the factors may be off by: how they differ between its buckets, how the machine's pace
    changed over the log, and how far the simulator is from the seconds of the log.
    """
    own_s = summary.busy_s(simulate(served.workload, served.costs, policy))
    known = _known(served, base)
    logs = _ratios(known)
    factors = np.exp(logs.mean(axis=0)) if len(logs) else np.ones(2)
    between = max(map(apart, logs.T))
    simulator = abs(np.log(own_s / served.busy_s))
    deviation = float(np.sqrt(between**2 + 2 * served.drift**2 + simulator**2))
    why = (
        f"the log's passes took {factors[0]:.2f} (prefill) and {factors[1]:.2f} (decode) times as "
        f"long as priced, other buckets' that within {between:.0%}, and changed by "
        f"{served.drift:.0%} over time; the simulator gives its busy seconds within "
        f"{abs(own_s / served.busy_s - 1):.1%}"
    )
    compiles = compile_factor((own.compile_s, cost.compile_s) for own, cost in known)
    return Rescaled(base, (factors[0], factors[1]), deviation, why, served.costs, compiles)


def _known(served: Served, base: CostModel) -> list[tuple[BucketCost, BucketCost]]:
    """What the buckets that ran took, and what `base` has for them where it knows them."""
    pairs = []
    for cost in served.costs:
        with suppress(ValueError):
            pairs.append((cost, base.of(cost.bucket)))
    return pairs


def _ratios(pairs: Iterable[tuple[BucketCost, BucketCost]]) -> np.ndarray:
    """Logarithms of the seconds of the first over those of the second, [pairs, 2]."""
    ratios = [(own.prefill_s / cost.prefill_s, own.decode_s / cost.decode_s) for own, cost in pairs]
    return np.log(np.array(ratios).reshape(-1, 2))


def apart(logs: Sequence[float] | np.ndarray) -> float:
    """How far another bucket's or shape's factor may be from those of a log, whose logarithms these
    are: a standard deviation. One alone cannot say that and leaves `APART`."""
    squares = np.square(np.subtract(logs, np.mean(logs))).sum() if len(logs) else 0.0
    return float(np.sqrt((APART**2 + squares) / max(1, len(logs))))


def compile_factor(pairs: Iterable[tuple[float, float]]) -> float:
    """How many times as long a log's cold starts compiled as priced, of the seconds of both; 1
    where none was cold or nobody knows the price. The compiler's machine is not the table's."""
    cold = [(own_s, priced_s) for own_s, priced_s in pairs if own_s and priced_s]
    own_s, priced_s = (sum(each) for each in zip(*cold, strict=True)) if cold else (1.0, 1.0)
    return own_s / priced_s


def tune(
    workload: Workload,
    model: CostModel,
    current: Sequence[BucketCost],
    limits: Limits,
    *,
    batch_sizes: Sequence[int],
    policy: Policy | None = None,
    measured_busy_s: float | None = None,
    replications: int = 100,
    seed: int = 0,
) -> Tuning:
    """Chooses buckets for the requests of a log and holds them against those of today, `current`
    (none: nobody said).

    Chosen on the first half (`advise`), but so that all requests are served: refusing the longest
    would look like a saving. Figures are of all requests, savings of those that today's serve, and
    `held_out` of these in the second half alone. Where today's were measured, the interval is of
    the others' costs; else both are drawn together, so that what they share cancels.

    Raises ValueError for too few requests, and what `advise` refuses.
    """
    if len(workload) < FEWEST:
        raise ValueError(
            f"{workload.name} has {len(workload)} requests: {FEWEST} or more are needed to choose "
            f"by half of them"
        )
    advice = advise(workload, model, limits, batch_sizes=batch_sizes, policy=policy, covering=True)
    new, today = advice.costs, tuple(current)

    def run(costs: Sequence[BucketCost], some: Workload, draw: Draw | None = None) -> SimulatedRun:
        drawn = draw.scaled(costs) if draw else costs
        return simulate(some, drawn, policy, estimated=costs)

    def shared(some: Workload) -> Workload | None:
        """The requests that today's buckets serve; the others' serve all."""
        served = run(today, some).served if today else np.zeros(0, bool)
        return some.take(served) if served.any() else None

    savings: dict[str, Saving | None] = {"busy_s": None, "p95_s": None}
    spread = None
    if (both := shared(workload)) is not None:
        old_run = run(today, both)
        fixed = measured_busy_s is not None
        drawn = new if fixed else tuple(dict.fromkeys((*today, *new)))
        spread = model.spread(drawn)
        pairs = []
        for draw in spread.draws(replications, seed) if spread and replications else ():
            if fixed:
                pairs.append((old_run, run(new, both, draw)))
            else:
                old_draw, new_draw = (_of(draw, drawn, costs) for costs in (today, new))
                pairs.append((run(today, both, old_draw), run(new, both, new_draw)))
        savings = savings_of(old_run, run(new, both), pairs)
    later = shared(advice.held_out)
    return Tuning(
        requests=len(workload),
        span_s=workload.span_s,
        current=_figures(today, run(today, workload)) if today else None,
        measured_busy_s=measured_busy_s,
        new=_figures(new, run(new, workload)),
        advice=advice,
        saving=savings["busy_s"],
        saving_p95=savings["p95_s"],
        held_out=savings_of(run(today, later), run(new, later), [])["busy_s"] if later else None,
        source=spread.source if spread else "the costs have no spread",
    )


def _of(draw: Draw, drawn: Sequence[BucketCost], costs: Sequence[BucketCost]) -> Draw:
    """What was drawn for some of the shapes."""
    return replace(draw, factors=draw.factors[[drawn.index(cost) for cost in costs]])


def _measures(run: SimulatedRun) -> dict[str, float]:
    return {"busy_s": summary.busy_s(run), "p95_s": _p95_e2el_s(run)}


def savings_of(
    old: SimulatedRun, new: SimulatedRun, pairs: Sequence[tuple[SimulatedRun, SimulatedRun]]
) -> dict[str, Saving | None]:
    def share(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
        return {name: 1 - after[name] / before[name] if before[name] else 0.0 for name in before}

    points = share(_measures(old), _measures(new))
    drawn = pd.DataFrame([share(_measures(one), _measures(other)) for one, other in pairs])
    return {
        name: Saving(point)
        if drawn.empty
        else Saving(point, *np.percentile(drawn[name], BAND, method="weibull").tolist())
        for name, point in points.items()
    }


def _p95_e2el_s(run: SimulatedRun) -> float:
    return latencies(run, (95,))["e2el"].percentiles_ms[95] / 1e3


def _figures(costs: Sequence[BucketCost], run: SimulatedRun) -> Figures:
    compile_s = sum(cost.compile_s for cost in costs)
    return figures_of(tuple(cost.bucket for cost in costs), compile_s, run)


def figures_of(
    compiled: tuple[Bucket, ...] | ShapeSet, compile_s: float, run: SimulatedRun
) -> Figures:
    return Figures(
        compiled=compiled,
        compile_s=compile_s,
        busy_s=summary.busy_s(run),
        p95_e2el_s=_p95_e2el_s(run),
        fill=waste.ledger(run).fill,
        rejected=int((~run.served).sum()),
    )


def shapes_file(tuning: Tuning, **origin: Any) -> dict[str, Any]:
    """What a server reads back (`"buckets": "@shapes.json"`, or `"prefill_shapes"` and
    `"decode_shapes"`): what is advised, and beside it where that is from."""
    saving, compiled = tuning.saving, tuning.advised.compiled
    return _setting(compiled) | {
        "tuned": origin
        | {
            "verdict": tuning.verdict,
            "requests": tuning.requests,
            "span_s": tuning.span_s,
            "busy_s": {
                "today": tuning.current and tuning.current.busy_s,
                "advised": tuning.advised.busy_s,
            },
            "compile_s": {
                "today": tuning.current and tuning.current.compile_s,
                "advised": tuning.advised.compile_s,
            },
            "saving": saving and {"point": saving.point, "p5": saving.low, "p95": saving.high},
            "interval_from": tuning.source,
        },
    }


def _setting(compiled: tuple[Bucket, ...] | ShapeSet) -> dict[str, Any]:
    if not isinstance(compiled, ShapeSet):
        return {"buckets": [[it.batch_size, it.prompt_length, it.new_tokens] for it in compiled]}
    return {
        "prefill_shapes": [str(shape) for shape in compiled.prefill],
        "decode_shapes": [str(shape) for shape in compiled.decode],
        "blocks": compiled.blocks,
    }
