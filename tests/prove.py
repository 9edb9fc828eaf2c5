"""`make prove`: by the clock, is an advised set of shapes better than powers of two, and by as much
as was predicted?

The set is chosen by the table that ships, on other requests, with at most as many graphs as powers
of two have. A server of each set is up, and both get the same requests in turn: pairs, of which
each begins with the other set than the one before. Predicted is the saving of device seconds, from
constants that a few requests on each server gave before the first pair. Every pair is printed as a
row of a table for docs/LOG.md; the last line is JSON. Exit code 1 where fewer than nine in ten
pairs are better, or the saving of all pairs is outside of the interval. Nothing else should run.
"""

import argparse
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from spyre_bench.checkpoints.find import model_directory
from spyre_bench.choose.advise_shapes import Engine, ShapeAdvice, advise_shapes
from spyre_bench.choose.visits import ShapeLimits
from spyre_bench.cost.source import load_cost
from spyre_bench.cost.spread import BAND
from spyre_bench.metrics.intervals import replicate
from spyre_bench.metrics.summary import busy_s
from spyre_bench.policy.continuous import RULES
from spyre_bench.shape_set import ShapeSet
from spyre_bench.simulate.continuous import simulate
from spyre_bench.studies.under_load import at_rate
from spyre_bench.validate.continuous import (
    StepCheck,
    StepConstants,
    calibrate_steps,
    check_steps,
    setting_of,
)
from spyre_bench.validate.server import Server, serve
from spyre_bench.workload.source import load_workload
from spyre_bench.workload.workload import Workload

BASELINE, ADVISED = "powers of two", "advised"
BETTER = 0.9  # of the pairs


def advise(workload: Workload, engine: Engine) -> ShapeAdvice:
    """With as many graphs as powers of two have."""
    model = load_cost()
    first = advise_shapes(workload, model, ShapeLimits(2), engine, RULES).contenders
    graphs = int(first.set_index("name").at[BASELINE, "graphs"])
    return advise_shapes(workload, model, ShapeLimits(graphs), engine, RULES)


def sets_of(advice: ShapeAdvice) -> dict[str, ShapeSet]:
    """The other set, then the advised one, with as many blocks."""
    row = advice.contenders.set_index("name").loc[BASELINE]
    other = ShapeSet.parse(row["prefill"], row["decode"], advice.shapes.blocks)
    return {BASELINE: other, ADVISED: advice.shapes}


def predicted(constants: dict[str, StepConstants], workload: Workload, seed: int) -> dict:
    """The saving, and P5 to P95 of it over draws of what the passes of each server take."""
    point = {name: busy_s(it.simulate(workload)) for name, it in constants.items()}
    drawn = []
    for number, it in enumerate(constants.values()):
        assert it.spread, "calibrated constants have one"
        seconds = replicate(
            lambda draw, it=it: simulate(
                workload,
                it.costs.scaled(draw.factors[:, 0].tolist()),
                it.rules,
                estimated=it.estimated,
            ),
            it.spread,
            seed=seed + number,
            figures=lambda run: {"busy_s": busy_s(run)},
        )
        drawn.append(seconds.replications["busy_s"].to_numpy())
    low, high = np.percentile(1 - drawn[1] / drawn[0], BAND)
    return {"saving": saved(point), "low": float(low), "high": float(high)}


def saved(of: dict[str, float]) -> float:
    return 1 - of[ADVISED] / of[BASELINE]


def pair(
    servers: dict[str, Server],
    constants: dict[str, StepConstants],
    workload: Workload,
    out: Path,
    number: int,
) -> dict[str, StepCheck]:
    order = list(servers) if number % 2 else list(servers)[::-1]
    return {
        name: check_steps(servers[name], constants[name], workload, out / name, f"pair {number}")
        for name in order
    }


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pairs", type=int, default=10)
    options.add_argument("--requests", type=int, default=24, help="of each run")
    options.add_argument("--workload", default="azure_conv")
    options.add_argument("--length-scale", type=float, default=0.12)
    options.add_argument("--rows", type=int, default=8)
    options.add_argument("--chunk", type=int, default=256)
    options.add_argument("--load", type=float, default=0.7, help="1: what powers of two can serve")
    options.add_argument("--model", default="smollm2")
    options.add_argument("--backend", default="inductor")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path("reports/prove"))
    given = options.parse_args()
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}", flush=True)

    rng = np.random.default_rng(given.seed)
    drawn = load_workload(given.workload, requests=2000, rng=rng).scaled(given.length_scale)
    arriving = drawn.with_arrivals("poisson:1", rng)
    advice = advise(arriving, Engine(given.rows, given.chunk))
    sets = sets_of(advice)
    for name, shapes in sets.items():
        print(f"{name}: {len(shapes)} graphs, {shapes}", flush=True)
    print(f"by the table, on its own requests: {advice.verdict}", flush=True)

    few = load_workload(given.workload, requests=given.requests, rng=rng)
    few = few.scaled(given.length_scale).with_arrivals("poisson:1", rng)
    with ExitStack() as stack:
        servers, constants = {}, {}
        for name, shapes in sets.items():
            setting = setting_of(shapes) | {"compile_backend": given.backend}
            servers[name] = stack.enter_context(
                serve(model_directory(given.model), None, given.out / name, **setting)
            )
        for name, server in servers.items():
            constants[name] = calibrate_steps(server, given.out / name)
        queued = constants[BASELINE].simulate(few.with_arrivals("all"))
        workload = at_rate(few, given.load * len(few) / busy_s(queued))
        told = predicted(constants, workload, given.seed)
        print(
            f"predicted: {told['saving']:.1%} of the device seconds saved "
            f"({told['low']:.1%} to {told['high']:.1%})\n"
            f"| pair | {BASELINE} [s] | {ADVISED} [s] | saved | mean E2EL |\n|---|---|---|---|---|",
            flush=True,
        )
        savings, latencies = [], []
        for number in range(given.pairs):
            done = pair(servers, constants, workload, given.out, number)
            busy = {name: it.busy_s for name, it in done.items()}
            e2el = {name: float(np.mean(it.measured["latencies"])) for name, it in done.items()}
            savings.append(saved(busy))
            latencies.append(saved(e2el))
            print(
                f"| {number} | {busy[BASELINE]:.2f} | {busy[ADVISED]:.2f} | {savings[-1]:+.1%} | "
                f"{latencies[-1]:+.1%} |",
                flush=True,
            )
    better = float(np.mean(np.array(savings) > 0))
    whole = float(np.mean(savings))
    met = better >= BETTER and told["low"] <= whole <= told["high"]
    figures = {"predicted": told, "saved": whole, "better_pairs": better}
    print(json.dumps(figures | {"e2el_saved": float(np.mean(latencies)), "met": met}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
