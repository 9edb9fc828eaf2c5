"""A machine that is made up: its passes drift from minute to minute and no two batches are alike.

It answers as a server with a client does, so that checks run on it from the first calibration to
the last judgement. Its reality has nothing of what the checks assume of it: the drift is a random
walk, the client's delay is one-sided, and the pass log is written pass by pass.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.shape_cost import ShapeCosts
from spyre_bench.metrics.vllm_json import bench_result
from spyre_bench.pass_log import Came, Gone, Step
from spyre_bench.policy.continuous import RULES, Rules
from spyre_bench.policy.static import Policy
from spyre_bench.simulate import continuous
from spyre_bench.simulate.result import KINDS, PREFILL, ContinuousRun, SimulatedRun
from spyre_bench.simulate.static import simulate
from spyre_bench.validate.continuous import StepConstants
from spyre_bench.validate.hosts import Served
from spyre_bench.validate.static import BatchConstants
from spyre_bench.workload.workload import Workload

FRONT_END_S = 0.004
APART_S = 1000.0  # from one workload to the next


class Machine:
    def __init__(
        self,
        costs: Sequence[BucketCost],
        policy: Policy,
        *,
        seed: int = 0,
        drift: float = 0.02,
        batch: float = 0.02,
        step: float = 0.01,
    ):
        """`drift` is how far the pace walks from one workload to the next, `batch` how far batches
        are from it, `step` single passes (of the logarithm)."""
        self.costs, self.policy = tuple(costs), policy
        self.drift, self.batch, self.step = drift, batch, step
        self.rng = np.random.default_rng(seed)
        self.pace = 0.0
        self.clock_s = 0.0

    def warmed(self) -> BatchConstants:
        return BatchConstants(self.costs, self.costs, self.policy)

    def serve(self, workload: Workload, name: str) -> Served:
        self.pace += self.drift * self.rng.standard_normal()
        run = simulate(
            workload,
            self.costs,
            self.policy,
            estimated=self.costs,
            pace=self._paces,
            seen_s=workload.arrival_s + FRONT_END_S,
        )
        result = as_measured(run, self.rng.gamma(4, 0.002, len(workload)), self.clock_s)
        self.clock_s += APART_S
        return Served(result, self.pass_log(run, workload.arrival_s + FRONT_END_S))

    def _paces(self, start_s: float) -> tuple[float, float]:
        prefill, decode = np.exp(self.pace + self.batch * self.rng.standard_normal(2))
        return float(prefill), float(decode)

    def pass_log(self, run: SimulatedRun, seen_s: np.ndarray) -> pd.DataFrame:
        """The run pass by pass; single passes differ, the batch's seconds stay."""
        passes, some, rows = run.passes, run.workload, []
        for row in range(len(passes)):
            members = passes.of_row(row)[0]
            count, prefill = int(passes.count[row]), passes.kind[row] == 0
            seconds = np.exp(self.step * self.rng.standard_normal(count))
            seconds *= passes.seconds[row] * count / seconds.sum()
            starts_s = passes.start_s[row] + np.cumsum(seconds) - seconds
            for place in range(count):
                further = place + (0 if prefill else 1)
                rows.append(
                    {
                        "kind": KINDS[passes.kind[row]],
                        "batch": int(passes.batch[row]),
                        "bucket": str(run.costs[passes.shape[row]].bucket),
                        "start_s": starts_s[place],
                        "seconds": 0.98 * seconds[place],
                        "step": further,
                        "prompt_tokens": some.prompt_tokens[members].tolist(),
                        "running": int((some.output_tokens[members] > further).sum()),
                        "place": members.tolist() if prefill else [],
                        "arrival_s": some.arrival_s[members].tolist() if prefill else [],
                        "seen_s": seen_s[members].tolist() if prefill else [],
                        "max_tokens": some.max_tokens[members].tolist() if prefill else [],
                        "looked_s": looks(run, row, seen_s) if prefill else [],
                        "left": [],
                        "measured_at": "2026-01-01T00:00:00+00:00",
                    }
                )
        return pd.DataFrame(rows)


def looks(run: SimulatedRun, row: int, seen_s: np.ndarray) -> list[float]:
    """The decision before a batch, when somebody came to an idle engine or the last batch began,
    and the one that started it."""
    passes, start_s = run.passes, float(run.passes.start_s[row])
    before_s = free_s = -np.inf
    if row > 0:
        before_s = passes.start_s[passes.first_of_batch[passes.batch[row] - 1]]
        free_s = passes.start_s[row - 1] + passes.seconds[row - 1] * passes.count[row - 1]
    held = seen_s[(seen_s > free_s) & (seen_s < start_s)]
    before_s = held.max(initial=before_s)
    return [float(before_s), start_s] if np.isfinite(before_s) else [start_s]


class PagedMachine:
    """One of continuous batching, whose pace drifts alike. Passes of each shape take `longer` than
    in its warmup, a factor each; `delay_s` is what its client waits, None: as it comes."""

    def __init__(
        self,
        costs: ShapeCosts,
        longer: Sequence[float],
        rules: Rules = RULES,
        *,
        seed: int = 0,
        drift: float = 0.02,
        delay_s: float | None = None,
    ):
        self.costs, self.longer, self.rules = costs, np.array(longer), rules
        self.drift, self.delay_s = drift, delay_s
        self.rng = np.random.default_rng(seed)
        self.pace, self.clock_s = 0.0, 0.0
        self.left: list[Gone] = []  # with the last pass of the workload before

    def warmed(self) -> StepConstants:
        return StepConstants(self.costs, self.costs, self.rules)

    def serve(self, workload: Workload, name: str) -> Served:
        self.pace += self.drift * self.rng.standard_normal()
        run = continuous.simulate(
            workload,
            self.costs.scaled((np.exp(self.pace) * self.longer).tolist()),
            self.rules,
            estimated=self.costs,
        )
        delays_s = self.rng.gamma(4, 0.002, len(workload))
        if self.delay_s is not None:
            delays_s = np.full(len(workload), self.delay_s)
        steps = list(steps_of(run, self.clock_s, self.left))
        told = {one.request for step in steps for one in step.gone}
        everybody = ended(run, self.clock_s, range(len(workload)))
        self.left = [one for one in everybody if one.request not in told]
        result = as_measured(run, delays_s, self.clock_s)
        self.clock_s += APART_S
        return Served(result, steps)


def as_measured(run: SimulatedRun, delay_s: np.ndarray, clock_s: float) -> dict:
    """The run as a client sees it that waits so much longer."""
    result = bench_result(run, detailed=True)
    for times in ("ttfts", "latencies"):
        result[times] = (np.array(result[times]) + delay_s).tolist()
    result["start_times"] = (clock_s + run.workload.arrival_s).tolist()
    return result


def steps_of(run: ContinuousRun, zero_s: float, left: Sequence[Gone] = ()) -> Iterator[Step]:
    """The run pass by pass, as its engine logs it; `left` went before the first of them."""
    passes, asked = run.passes, run.workload
    seen, gone = 0, set()
    for row in range(len(passes)):
        members = passes.of_row(row)[0].tolist()
        cost, is_chunk = run.costs.each[passes.shape[row]], passes.kind[row] == PREFILL
        context, at_s = int(passes.before[row]), float(passes.start_s[row])
        for _ in range(int(passes.count[row])):
            computed = int(passes.useful[row]) if is_chunk else len(members)
            seconds = (
                cost.pass_s(context) if is_chunk else cost.pass_s(computed, context + computed)
            )
            context += computed
            came = []
            while seen < len(asked) and asked.arrival_s[seen] <= at_s:
                times = (zero_s + float(asked.arrival_s[seen]), zero_s + at_s)
                sizes = int(asked.prompt_tokens[seen]), int(asked.max_tokens[seen])
                came.append(Came(f"{zero_s:g}-{seen}", *times, *sizes, []))
                seen += 1
            went = np.flatnonzero(run.requests.finish_s < at_s + 1e-9)
            went, gone = sorted(set(went) - gone), gone | set(went)
            share = [context // len(members)] * len(members)
            share[0] += context - sum(share)
            yield Step(
                "chunk" if is_chunk else "rows",
                cost.shape,
                zero_s + at_s,
                seconds,
                [f"{zero_s:g}-{it}" for it in members],
                [computed] if is_chunk else [1] * len(members),
                0,
                share,
                max(share),
                *(0, 0, 9),
                came=came,
                gone=[*left, *ended(run, zero_s, went)],
                named=[[] for _ in members],
            )
            at_s, left = at_s + seconds, ()


def ended(run: ContinuousRun, zero_s: float, requests: Iterable[int]) -> list[Gone]:
    outputs = run.workload.output_tokens
    return [Gone(f"{zero_s:g}-{it}", True, int(outputs[it])) for it in requests]
