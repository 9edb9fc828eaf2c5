"""Better shapes of continuous batching for a deployment that runs, from its pass log, as `tune` has
buckets."""

from __future__ import annotations

import numpy as np

from spyre_bench.choose.advise_shapes import Engine, advise_shapes
from spyre_bench.choose.visits import ShapeLimits
from spyre_bench.cost.bucket_cost import CostModel
from spyre_bench.cost.rescaled import RescaledShapes
from spyre_bench.cost.shape_cost import ShapeCosts
from spyre_bench.metrics import summary
from spyre_bench.metrics.served_steps import PREFIXES, ServedSteps
from spyre_bench.simulate.continuous import Prefixes, simulate
from spyre_bench.simulate.result import ContinuousRun
from spyre_bench.studies.tune import FEWEST, Tuning, apart, compile_factor, figures_of, savings_of
from spyre_bench.workload.workload import Workload


def of_log(served: ServedSteps, base: CostModel) -> RescaledShapes:
    """The costs of a deployment that was logged, as `tune.of_log` has those of buckets."""
    own_s = summary.busy_s(_run(served, served.costs, served.workload))
    known = _known(served, base)
    logs = _ratios(served, known) if known else ([], [])
    prefill, decode = (float(np.exp(np.mean(some))) if len(some) else 1.0 for some in logs)
    between = max(map(apart, logs))
    simulator = abs(float(np.log(own_s / served.busy_s)))
    deviation = float(np.sqrt(between**2 + 2 * served.drift**2 + simulator**2))
    why = (
        f"the log's passes took {prefill:.2f} (prefill) and {decode:.2f} (decode) times as long as "
        f"priced, other shapes' that within {between:.0%}, and changed by {served.drift:.0%} over "
        f"time; the simulator gives its busy seconds within {abs(own_s / served.busy_s - 1):.1%}"
    )
    pairs = zip(served.costs.each, known.each, strict=True) if known else ()
    compiles = compile_factor((own.compile_s, cost.compile_s) for own, cost in pairs)
    return RescaledShapes(base, (prefill, decode), deviation, why, served.costs, compiles)


def _known(served: ServedSteps, base: CostModel) -> ShapeCosts | None:
    """What `base` has for the shapes of the log; None where it does not know them."""
    try:
        return base.of_shapes(served.costs.shapes)
    except ValueError:
        return None


def _ratios(served: ServedSteps, known: ShapeCosts) -> tuple[list[float], list[float]]:
    """Logarithms of measured over known of the shapes that ran, by kind. Of the passes as they ran:
    full ones, which a quiet server never sees, may be off by more or by less."""
    longer = served.longer_than(known)
    prefill, decode = (
        [float(np.log(longer[name])) for name in (it.shape.name for it in costs) if name in longer]
        for costs in (known.prefill, known.decode)
    )
    return prefill, decode


def tune_shapes(
    served: ServedSteps,
    model: CostModel,
    limits: ShapeLimits,
    engine: Engine,
    *,
    measured_busy_s: float | None = None,
    replications: int = 100,
    seed: int = 0,
) -> Tuning:
    """Chooses shapes for the requests of a log and holds them against those that it ran, which are
    among the candidates; over as many blocks, under its rules and with its prefix cache.

    Chosen on the first half (`advise_shapes`), over the longest request of both. The seconds of
    today's were measured: the interval is of what the others' passes could take.

    Raises ValueError for too few requests, and what `advise_shapes` refuses.
    """
    workload, today = served.workload, served.costs.shapes
    if len(workload) < FEWEST:
        raise ValueError(
            f"{workload.name} has {len(workload)} requests: {FEWEST} or more are needed to choose "
            f"by half of them"
        )

    advice = advise_shapes(
        *(workload, model, limits, engine, served.rules, today),
        lambda some: _prefixes(served, some),
    )
    new, old = advice.costs, model.of_shapes(today)
    old_run, new_run = (_run(served, costs, workload) for costs in (old, new))
    spread = model.spread_of_shapes(new)
    draws = spread.draws(replications, seed) if spread and replications else ()
    drawn = [
        (old_run, _run(served, new.scaled(draw.factors[:, 0].tolist()), workload, new))
        for draw in draws
    ]
    savings = savings_of(old_run, new_run, drawn)
    return Tuning(
        requests=len(workload),
        span_s=workload.span_s,
        current=figures_of(today, old.compile_s, old_run),
        measured_busy_s=measured_busy_s,
        new=figures_of(new.shapes, new.compile_s, new_run),
        advice=advice,
        saving=savings["busy_s"],
        saving_p95=savings["p95_s"],
        held_out=savings_of(
            _run(served, old, advice.held_out), _run(served, new, advice.held_out), []
        )["busy_s"],
        source=spread.source if spread else "the costs have no spread",
        what="shapes",
    )


def _run(
    served: ServedSteps,
    costs: ShapeCosts,
    workload: Workload,
    estimated: ShapeCosts | None = None,
) -> ContinuousRun:
    prefixes = _prefixes(served, workload)
    return simulate(workload, costs, served.rules, prefixes=prefixes, estimated=estimated)


def _prefixes(served: ServedSteps, workload: Workload) -> Prefixes | None:
    return list(workload.extras[PREFIXES]) if served.prefix_cache else None
