"""One function per figure: a tidy frame in, a matplotlib Axes out. Nothing is computed here; what a
figure means is its title, which the caller knows and passes.
"""

from spyre_bench.plots.cards import all_reduce_shares, capacities, gains, intervals, tornado
from spyre_bench.plots.choice import buckets, contenders, k_curve, lengths, schemes, waterfall
from spyre_bench.plots.drawn import drawn
from spyre_bench.plots.kinds import chunk_lengths, kinds_on_servers, kinds_under_load, paid, pareto
from spyre_bench.plots.runs import small_multiples
from spyre_bench.plots.serving import (
    FULLNESS,
    HOLDING,
    LATENCIES,
    fill_and_seconds,
    fill_under_load,
    hold_timers,
    latency_under_load,
    ledger_shares,
    pass_timeline,
    waste_ledger,
)
from spyre_bench.plots.startup import break_even, growth, predicted, startup_stages
from spyre_bench.plots.trust import measured_and_simulated, pairs_saved, pass_errors, predictions

__all__ = [
    "FULLNESS",
    "HOLDING",
    "LATENCIES",
    "all_reduce_shares",
    "break_even",
    "buckets",
    "capacities",
    "chunk_lengths",
    "contenders",
    "drawn",
    "fill_and_seconds",
    "fill_under_load",
    "gains",
    "growth",
    "hold_timers",
    "intervals",
    "k_curve",
    "kinds_on_servers",
    "kinds_under_load",
    "latency_under_load",
    "ledger_shares",
    "lengths",
    "measured_and_simulated",
    "paid",
    "pairs_saved",
    "pareto",
    "pass_errors",
    "pass_timeline",
    "predicted",
    "predictions",
    "schemes",
    "small_multiples",
    "startup_stages",
    "tornado",
    "waste_ledger",
    "waterfall",
]
