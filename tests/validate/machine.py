"""A machine that is made up: its passes drift from minute to minute and no two batches are alike.

It answers as a server with a client does, so that checks run on it from the first calibration to
the last judgement. Its reality has nothing of what the checks assume of it: the drift is a random
walk, the client's delay is one-sided, and the pass log is written pass by pass.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.metrics.vllm_json import bench_result
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import BucketSet
from spyre_bench.simulate.result import KINDS, SimulatedRun
from spyre_bench.simulate.static import simulate
from spyre_bench.validate.check import Served
from spyre_bench.workload.workload import Workload

FRONT_END_S = 0.004


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

    def estimated(self, buckets: BucketSet) -> tuple[BucketCost, ...]:
        return self.costs

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
        delay_s = self.rng.gamma(4, 0.002, len(workload))
        result = bench_result(run, detailed=True)
        for times in ("ttfts", "latencies"):
            result[times] = (np.array(result[times]) + delay_s).tolist()
        result["start_times"] = (self.clock_s + workload.arrival_s).tolist()
        self.clock_s += 1000.0
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
                        "left": [],
                        "measured_at": "2026-01-01T00:00:00+00:00",
                    }
                )
        return pd.DataFrame(rows)
