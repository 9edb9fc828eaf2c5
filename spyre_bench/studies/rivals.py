"""Two sets of shapes to hold against each other by the clock: powers of two, and the advised one
with at most as many graphs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from spyre_bench.choose.advise_shapes import Engine, ShapeAdvice, advise_shapes, within_contexts
from spyre_bench.choose.visits import ShapeLimits
from spyre_bench.cost.bucket_cost import CostModel
from spyre_bench.policy.continuous import Rules
from spyre_bench.shape_set import ShapeSet
from spyre_bench.workload.workload import Workload

BASELINE, ADVISED = "powers of two", "advised"


@dataclass(frozen=True)
class Rivals:
    """The baseline, then the advised set over as many blocks, by name; and what the model says of
    them on the requests that they were chosen by."""

    sets: dict[str, ShapeSet]
    verdict: str


def rivals(workload: Workload, model: CostModel, engine: Engine, rules: Rules) -> Rivals:
    """Raises ValueError where powers of two are what is advised, or equal to another choice."""
    known = within_contexts(workload, model)

    def advise(graphs: int) -> tuple[ShapeAdvice, Mapping[Hashable, Any]]:
        advice = advise_shapes(known, model, ShapeLimits(graphs), engine, rules)
        powers = advice.contenders.set_index("name").to_dict("index").get(BASELINE)
        if powers is None or powers["advised"]:
            raise ValueError(
                f"{BASELINE} are nothing to hold the advice against for {workload.name} and "
                f"{engine.rows} rows, since they are advised themselves, or are no more than "
                f"another choice: ask longer requests or more rows"
            )
        return advice, powers

    _, powers = advise(2)
    advice, powers = advise(int(powers["graphs"]))
    other = ShapeSet.parse(powers["prefill"], powers["decode"], advice.shapes.blocks)
    return Rivals({BASELINE: other, ADVISED: advice.shapes}, advice.verdict)
