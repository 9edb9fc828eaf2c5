"""`make trust`: does the interval that is registered before a run hold, and does the simulator
decide as the server? `BATCHING=continuous` asks it of the other kind of batching.

Checks of one server over workloads, loads and seeds; then runs whose clients hang up, which only
decisions are asked of. Every check is printed, as a row of a table for docs/LOG.md, and kept as CSV
with all predictions in the folder. The last lines are the aims. Exit code 1 where one is missed.
Nothing else should be running.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from spyre_bench.checkpoints.find import model_directory
from spyre_bench.policy.static import Policy
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import BucketSet
from spyre_bench.studies.under_load import at_rate
from spyre_bench.validate import continuous, static
from spyre_bench.validate.check import Check, Checks
from spyre_bench.validate.constants import Constants
from spyre_bench.validate.continuous import ContinuousHost
from spyre_bench.validate.coverage import aims
from spyre_bench.validate.decisions import Decisions
from spyre_bench.validate.hosts import LiveHost
from spyre_bench.validate.server import Server, serve
from spyre_bench.validate.static import StaticHost
from spyre_bench.workload.source import load_workload
from spyre_bench.workload.workload import Workload

BUCKETS = BucketSet.parse("4,64,16 2,128,32")
SHAPES = ShapeSet.parse("64,192 128,192", "2,192 4,192")
WORKLOADS = (("azure_conv", 0.06), ("burstgpt", 0.1))  # and the factor on its lengths
REQUESTS = {"static": 32, "continuous": 24}
LOADS = (0.4, 0.7, 0.9, 1.0)  # 1: the simulated capacity
ABORTS = 0.3  # of the clients hang up, within so many seconds:
PATIENCE_S = 3.0


@contextlib.contextmanager
def served(
    batching: str, model: str, backend: str, gather_s: float, out: Path
) -> Iterator[tuple[LiveHost, Callable[[Workload], Workload]]]:
    """A server of this kind of batching, and which requests fit it."""
    directory, setting = model_directory(model), {"threads": 1, "compile_backend": backend}
    if batching == "continuous":
        setting |= SHAPES.setting
        with serve(directory, None, out, **setting) as server:
            yield ContinuousHost(server, out), lambda drawn: continuous.fitting(drawn, SHAPES)
        return
    policy = Policy("best_fit", gather_s=gather_s)
    setting |= {"policy": policy.name, "gather_s": policy.gather_s}
    with serve(directory, BUCKETS, out, **setting) as server:
        yield (
            StaticHost(server, out, BUCKETS, policy),
            lambda drawn: static.fitting(drawn, BUCKETS),
        )


def planned(
    requests: int, constants: Constants, fitting: Callable[[Workload], Workload]
) -> Iterator[tuple[str, Workload, int]]:
    """Name, requests and seed of one check after the other, without end: all loads of all
    workloads, then those of the next seed."""
    for seed in itertools.count():
        for (name, lengths), load in itertools.product(WORKLOADS, LOADS):
            rng = np.random.default_rng([seed, round(100 * load)])
            drawn = load_workload(name, requests=8 * requests, rng=rng).scaled(lengths)
            few = fitting(drawn).head(requests).with_arrivals("poisson:1", rng)
            rps = load * constants.capacity_rps(few)
            yield f"{name} load {load:g} seed {seed}", at_rate(few, rps), seed


def with_aborts(
    host: LiveHost, constants: Constants, workload: Workload, seed: int
) -> tuple[int, Decisions]:
    """How many clients hung up, and whether the simulator decided as the server did."""
    rng = np.random.default_rng(seed)
    patience_s = rng.uniform(0, PATIENCE_S, len(workload))
    leaves_s = np.where(rng.random(len(workload)) < ABORTS, patience_s, math.inf)
    before = host.count()
    hung_up = replay_with_aborts(
        host.server, workload, workload.arrival_s + leaves_s, token=1 + seed
    )
    wait_until_idle(host)
    return hung_up, constants.decisions(host.passes(before))


def replay_with_aborts(
    server: Server, workload: Workload, leaves_s: np.ndarray, token: int = 1
) -> int:
    """Sends the requests at their times, as streams; each client hangs up at its `leaves_s` (inf:
    never). Returns how many did. What came of it is in the pass log. Prompts are of this token
    alone, so that all of a run begin alike."""
    began = time.monotonic() + 0.5

    def send(row: int) -> bool:
        time.sleep(max(0.0, began + float(workload.arrival_s[row]) - time.monotonic()))
        tokens, new_tokens = int(workload.prompt_tokens[row]), int(workload.max_tokens[row])
        return _hangs_up(server, [token] * tokens, new_tokens, began + float(leaves_s[row]))

    with ThreadPoolExecutor(len(workload)) as clients:
        return sum(clients.map(send, range(len(workload))))


def _hangs_up(server: Server, prompt: list[int], new_tokens: int, at: float) -> bool:
    """Whether the answer was not whole at that time of the monotonic clock."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    body = {"model": "model", "prompt": prompt, "max_tokens": new_tokens, "stream": True}
    body |= {"temperature": 0, "ignore_eos": True}
    try:
        connection.connect()
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        assert connection.sock is not None, "it is connected"
        connection.sock.settimeout(max(0.001, at - time.monotonic()) if at < math.inf else None)
        reply = connection.getresponse()
        while line := reply.readline():
            if b"[DONE]" in line:
                return False
            if time.monotonic() >= at:
                return True
        return False
    except TimeoutError:
        return True
    finally:
        connection.close()


def wait_until_idle(host: LiveHost) -> None:
    """Whose clients have all gone: a batch goes on without them."""
    before = -1
    while (ran := host.count()) != before:
        before = ran
        time.sleep(1.0)


def row(check: Check) -> str:
    """Of a table in docs/LOG.md."""
    cells = [check.name]
    for figure in check.judged().itertuples():
        scale = 1e-3 if figure.figure.endswith("_ms") else 1
        low, high, measured = (x * scale for x in (figure.low, figure.high, figure.measured))
        mark = {"inside": "", "outside": " **out**", "disturbed": ""}[figure.state]
        cells.append(f"{measured:.3g} in {low:.3g} to {high:.3g}{mark}")
    told = check.told_apart()
    decided = "all" if told["decisions_agree"] else "**no**"
    cells += [f"{decided}, {told['latest_ms']:.1f} ms", f"{told['cost_bias']:+.1%}"]
    cells += [f"{told['cost_drift']:+.1%}", f"{told['amplification']:.1f}"]
    changed = f"{told['change_of_pace']:+.1%} of {told['allowed_change']:.1%}"
    changed += f", {told['others_cores']:.1f} cores"
    cells.append(f"{changed}{' **disturbed**' if told['disturbed'] else ''}")
    return f"| {' | '.join(cells)} |"


COLUMNS = "check, E2EL P50 [s], E2EL P95 [s], requests/s, decisions, bias, drift, load, pace"
HEADER = f"| {COLUMNS.replace(', ', ' | ')} |\n|{'---|' * len(COLUMNS.split(', '))}"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--batching", choices=("static", "continuous"), default="static")
    options.add_argument("--checks", type=int, default=24)
    options.add_argument("--aborts", type=int, default=3, help="runs whose clients hang up")
    options.add_argument("--requests", type=int, help="of each check; default: 32, continuous 24")
    options.add_argument("--model", default="smollm2")
    options.add_argument("--backend", default="inductor")
    options.add_argument("--gather", type=float, default=0.02, help="static: more for a tiny model")
    options.add_argument("--out", type=Path, default=Path("reports/trust"))
    given = options.parse_args()
    out: Path = given.out
    load = os.getloadavg()[0]
    print(f"load of the machine before: {load:.1f}", flush=True)
    done: list[Check] = []
    setting = given.batching, given.model, given.backend, given.gather, out
    with served(*setting) as (host, fitting):
        checks = Checks(host, out)
        requests = given.requests or REQUESTS[given.batching]
        plan = planned(requests, checks.constants, fitting)
        print(HEADER)
        for name, workload, seed in itertools.islice(plan, given.checks):
            done.append(checks.check(name, workload, seed=seed))
            print(row(done[-1]), flush=True)
        agree = True
        for seed, (name, workload, _) in enumerate(itertools.islice(plan, given.aborts)):
            hung_up, decided = with_aborts(host, checks.constants, workload, seed)
            agree &= decided.agree
            print(f"{name}, {hung_up} of {len(workload)} clients hung up: {decided}", flush=True)
    judged = pd.concat(check.judged() for check in done)
    told_apart = pd.DataFrame([check.told_apart() for check in done])
    errors = pd.concat(check.by_quantity() for check in done)
    for name, frame in (("predictions", judged), ("told_apart", told_apart), ("errors", errors)):
        frame.to_csv(out / f"{name}.csv", index=False)
    met = [agree]
    for aim in aims(judged, told_apart, errors):
        met.append(aim.met is not False)
        state = "disturbed" if aim.met is None else "met" if aim.met else "MISSED"
        print(f"{state}: {aim.name} ({aim.evidence})")
    if given.batching == "continuous":
        apart = told_apart["rows_distance"]
        print(
            f"running rows, total variation distance from constants alone: {apart.median():.3f} in "
            f"the median, {apart.max():.3f} at most"
        )
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
