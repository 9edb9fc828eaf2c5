"""`make prove`: by the clock, is an advised set of shapes better than powers of two, and by as much
as was predicted?

The set is chosen by the table that ships, on other requests, with at most as many graphs as powers
of two have. A server of each set is up, and both get the same requests in turn: pairs, of which
each begins with the other set than the one before. Predicted, and registered before the first pair,
is the saving of device seconds, from constants that a few requests on each server gave. Every pair
is printed as a row of a table for docs/LOG.md and kept as CSV; the last line is JSON. Exit code 1
where fewer than nine in ten pairs are better, or the saving of all pairs is outside of the
interval. Nothing else should be running.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from spyre_bench.checkpoints.find import model_directory
from spyre_bench.choose.advise_shapes import Engine
from spyre_bench.cost.source import SHAPES, load_cost
from spyre_bench.policy.continuous import RULES
from spyre_bench.studies.rivals import ADVISED, BASELINE, rivals
from spyre_bench.validate.continuous import fitting
from spyre_bench.validate.pairs import SAVING, Verdict, on_servers
from spyre_bench.workload.source import load_workload


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
    out: Path = given.out
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}", flush=True)

    rng = np.random.default_rng(given.seed)
    drawn = load_workload(given.workload, requests=2000, rng=rng).scaled(given.length_scale)
    engine = Engine(given.rows, given.chunk)
    found = rivals(drawn.with_arrivals("poisson:1", rng), load_cost(SHAPES), engine, RULES)
    for name, shapes in found.sets.items():
        print(f"{name}: {len(shapes)} graphs, {shapes}", flush=True)
    print(f"by the table, on its own requests: {found.verdict}", flush=True)

    others = load_workload(given.workload, requests=8 * given.requests, rng=rng)
    few = fitting(others.scaled(given.length_scale), found.sets[ADVISED]).head(given.requests)
    setting = {"load": given.load, "seed": given.seed, "compile_backend": given.backend}
    model, few = model_directory(given.model), few.with_arrivals("poisson:1", rng)
    with on_servers(model, found.sets, few, out, **setting) as trial:
        told = trial.predicted
        low, high = told.intervals[SAVING]
        print(f"registered as {told.name}: {told.points[SAVING]:.1%} ({low:.1%} to {high:.1%})")
        names = f"{BASELINE} [s] | {ADVISED} [s]"
        print(f"| pair | {names} | saved | of mean E2EL | |\n|---|---|---|---|---|---|", flush=True)
        rows = []
        for row in trial.pairs(given.pairs):
            rows.append(row)
            taken = " | ".join(f"{row[f'{name} busy_s']:.2f}" for name in found.sets)
            saved = f"{row[SAVING]:+.1%} | {row[f'e2el_{SAVING}']:+.1%}"
            state = "**disturbed**" if row["disturbed"] else ""
            print(f"| {row['pair']} | {taken} | {saved} | {state} |", flush=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(out / "pairs.csv", index=False)
    seen = Verdict(frame, told)
    print(seen)
    met = {"better": seen.is_better, "as_predicted": seen.is_as_predicted}
    saved = seen.saving if seen.pairs else None
    figures = {"pairs": seen.pairs, "better_pairs": seen.better, "saved": saved}
    print(json.dumps(figures | {"predicted": told.points[SAVING], "interval": [low, high]} | met))
    return 1 if False in met.values() else 0


if __name__ == "__main__":
    sys.exit(main())
