"""Widgets over tested functions: controls, and below them the figure that these give.

Nothing is computed here that a plain cell could not call, and a notebook draws its figures in
plain cells: a figure that only a widget drew would be missing from the executed notebook.
"""

from spyre_bench.explore import kept
from spyre_bench.explore.cards import does_tp_pay
from spyre_bench.explore.choice import which_buckets
from spyre_bench.explore.fill import how_full
from spyre_bench.explore.kinds import static_or_continuous
from spyre_bench.explore.panel import panel
from spyre_bench.explore.passes import first_look
from spyre_bench.explore.startup import what_warmup_costs
from spyre_bench.explore.trust import trust_the_simulator

__all__ = [
    "does_tp_pay",
    "first_look",
    "how_full",
    "kept",
    "panel",
    "static_or_continuous",
    "trust_the_simulator",
    "what_warmup_costs",
    "which_buckets",
]
