"""Divisions of some cards under continuous batching, beside what static batching serves on them.

Every engine compiles what the card's own stack does: one prefill and one decode shape that its
compiler makes programs of in steps, so that nothing has to be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from spyre_bench.cost.card import SpyreCost
from spyre_bench.cost.shape_cost import ShapeCosts
from spyre_bench.metrics import latency
from spyre_bench.metrics.bounds import step_shares_s
from spyre_bench.policy.continuous import RULES
from spyre_bench.shape_set import BLOCK_TOKENS, ShapeSet, blocks_of
from spyre_bench.simulate.continuous import simulate
from spyre_bench.studies.capacity import Service, rates_to
from spyre_bench.studies.deployments import Deployment, at_ends
from spyre_bench.studies.static_or_continuous import LONG_CHUNK
from spyre_bench.studies.under_load import at_rate

ROWS = 16


def capacities(deployments: Iterable[Deployment], service: Service) -> pd.DataFrame:
    """One row per deployment and end of the parameters: the columns of `deployments.capacities` but
    buckets, and blocks, those of an engine's KV cache. Buckets that a card does not take refuse
    nothing here: no such engine compiles them."""
    rows = []
    for deployment, end in at_ends(deployments):
        rps, blocks, refused = math.nan, 0, ""
        if deployment.cost is None:
            refused = deployment.refused
        else:
            try:
                costs = symbolic(replace(deployment.cost, end=end), service)
            except ValueError as refusal:
                refused = str(refusal)
            else:
                rps, blocks = capacity_rps(deployment, costs, service), costs.blocks
        figures = {"capacity_rps": rps, "capacity_rps_a_card": rps / deployment.cards}
        rows.append(
            {**deployment.names, "end": end, **figures, "blocks": blocks, "refused": refused}
        )
    return pd.DataFrame(rows)


def symbolic(model: SpyreCost, service: Service) -> ShapeCosts:
    """One shape of each kind with steps, for the longest request of the workload; its KV cache has
    what all rows fill, or what the card's memory and its limit on rows times context leave. Raises
    ValueError where that does not hold one such request."""
    asked = service.workload.prompt_tokens + service.workload.max_tokens
    most = model.model.context_length // BLOCK_TOKENS
    contexts = min(blocks_of(int(asked.max())), most)
    longest, block = contexts * BLOCK_TOKENS, BLOCK_TOKENS
    room = min(model.batch_tokens or math.inf, model.slots) // BLOCK_TOKENS
    blocks = int(min(ROWS * contexts + 1, room))
    prefill = min(LONG_CHUNK, longest), longest, block, block
    return model.of_shapes(ShapeSet.parse([prefill], [(ROWS, longest, 1, block)], blocks))


def capacity_rps(deployment: Deployment, costs: ShapeCosts, service: Service) -> float:
    """The largest rate at which the service's share of requests are within its limits."""
    requests = service.requests(deployment.cards)
    least_s = step_shares_s(requests, costs)
    served_s = float(least_s[np.isfinite(least_s)].sum()) / deployment.replicas
    limit = deployment.cost.batch_tokens if deployment.cost else None
    rules = replace(RULES, max_batch_context_tokens=limit)

    def good_share(rate_rps: float) -> float:
        run = simulate(
            at_rate(requests, rate_rps),
            costs,
            rules,
            replicas=deployment.replicas,
            router=service.router,
        )
        return latency.good_requests(run, service.limits_ms) / len(requests)

    return service.largest(rates_to(len(requests) / served_s), good_share) if served_s else 0.0
