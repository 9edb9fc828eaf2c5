"""Where device seconds go: from the work itself, over the buckets, to each scheduling policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.cost.closed_form import FittedCost
from spyre_bench.metrics import summary
from spyre_bench.metrics.bounds import shape_bound_s, work_bound_s
from spyre_bench.policy.static import Policy
from spyre_bench.simulate.static import simulate
from spyre_bench.studies.under_load import fitting
from spyre_bench.workload.workload import Workload

STAGES = {
    "length_aware": "best batch of the whole queue",
    "best_fit": "head first, cheapest bucket",
    "skip": "upstream: first that fits",
    "fcfs": "no passing over",
}
"""From the freest to the strictest, and the rule that each adds."""


def waterfall(
    workload: Workload, costs: Sequence[BucketCost], machine: FittedCost, *, batch_size: int
) -> pd.DataFrame:
    """Device seconds of the requests that fit a bucket, all of them queued at once, so that no
    policy is short of company: stage, meaning, seconds, step_s (to the stage before) and
    over_shape_bound.

    The work bound comes from a closed form, all else from `costs`. Which is the lower is certain
    only where `machine` lies below those costs, as `FittedCost.below` makes it, and `batch_size` is
    no smaller than theirs. `length_aware` runs without its age guard.

    Raises ValueError where no request fits a bucket.
    """
    queued = fitting(workload, costs).with_arrivals("all")
    stages = {
        "work bound": ("no shapes, full batches", work_bound_s(queued, machine, batch_size)),
        "shape bound": (f"these {len(costs)} buckets, full batches", shape_bound_s(queued, costs)),
    }
    for name, meaning in STAGES.items():
        run = simulate(queued, costs, Policy(name, max_age_s=math.inf))
        stages[name] = (meaning, summary.busy_s(run))
    meanings, seconds = zip(*stages.values(), strict=True)
    return pd.DataFrame(
        {
            "stage": list(stages),
            "meaning": meanings,
            "seconds": seconds,
            "step_s": np.diff(seconds, prepend=0.0),
            "over_shape_bound": np.array(seconds) / stages["shape bound"][1],
        }
    )
