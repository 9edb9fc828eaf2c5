"""Which buckets to take at a load: the advice for requests that come at a share of what an engine
serves of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from spyre_bench.choose.advise import Advice, advise, priced_candidates
from spyre_bench.choose.optimize import Limits, choose_buckets
from spyre_bench.cost.bucket_cost import CostModel
from spyre_bench.policy.static import Policy
from spyre_bench.studies.under_load import at_rate, capacity_rps
from spyre_bench.workload.workload import Workload


def advise_at(
    load: float,
    workload: Workload,
    model: CostModel,
    limits: Limits,
    *,
    batch_sizes: Sequence[int],
    policy: Policy,
    **numbers: int,
) -> Advice:
    """`choose.advise.advise` for the workload's arrivals at `load`, a share of the capacity of the
    proved choice for full batches; `numbers` are of the candidates (`optimize.candidates`).

    Raises ValueError for a load that is not positive, and what `advise` refuses."""
    fitted, _ = workload.halves()
    full = choose_buckets(
        fitted, priced_candidates(fitted, model, batch_sizes, extra=(), **numbers), limits
    )
    arriving = at_rate(workload, load * capacity_rps(fitted, full.costs, policy))
    return advise(arriving, model, limits, batch_sizes=batch_sizes, policy=policy, numbers=numbers)
