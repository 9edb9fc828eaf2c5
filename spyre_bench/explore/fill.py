"""03_how_full_are_batches: the waste in each bucket by policy, rate and hold timer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from spyre_bench.explore.panel import panel
from spyre_bench.explore.result import Drawn

if TYPE_CHECKING:
    import pandas as pd
    from ipywidgets import Box

    from spyre_bench.cost.bucket_cost import BucketCost
    from spyre_bench.policy.static import Policy
    from spyre_bench.workload.workload import Workload

QUEUED_REQUESTS = 1000


def how_full(
    workload: Workload,
    costs: Sequence[BucketCost],
    rules: Policy,
    capacity_rps: float,
    **settings: Any,
) -> Box:
    """Policy, rate and hold timer over the waste in each bucket. `rules` is the policy to begin
    with, `capacity_rps` the rate that counts as load 1, `settings` values of the controls to begin
    with."""
    import ipywidgets as widgets

    from spyre_bench.policy.static import POLICIES

    first = workload.head(min(QUEUED_REQUESTS, len(workload)))
    controls = {
        "policy": widgets.Dropdown(options=list(POLICIES), value=rules.name),
        "rate": widgets.FloatSlider(
            value=0.5 * capacity_rps,
            min=0.05 * capacity_rps,
            max=1.5 * capacity_rps,
            step=0.05 * capacity_rps,
            readout_format=".3g",
            continuous_update=False,
            description="rate [requests/s]",
        ),
        "max_wait_s": widgets.FloatSlider(
            value=rules.max_wait_s,
            max=60.0,
            step=1,
            continuous_update=False,
            description="max_wait [s]",
        ),
    }
    note = f"100 % load is {capacity_rps:.3g} requests/s."
    if len(first) < len(workload):
        note += (
            f" Only the first {len(first):,} of {len(workload):,} requests are simulated, so that "
            f"the picture follows at once; figures differ a little from those above."
        )
    draw = functools.partial(draw_fill, first, costs, rules, capacity_rps)
    return panel(draw, controls, note, name="how_full", settings=settings)


def draw_fill(
    workload: Workload,
    costs: Sequence[BucketCost],
    rules: Policy,
    capacity_rps: float,
    policy: str,
    rate: float,
    max_wait_s: float,
) -> Drawn:
    """The waste of each bucket when the workload's arrivals come at `rate` requests/s, and in the
    title what that means for those who wait."""
    from spyre_bench import plots
    from spyre_bench.choose import server_settings
    from spyre_bench.metrics import summary
    from spyre_bench.simulate.static import simulate
    from spyre_bench.studies import under_load

    rules = replace(rules, name=policy, max_wait_s=max_wait_s)
    run = simulate(under_load.at_rate(workload, rate), costs, rules)
    figures = summary.summary(run)
    frame = _every_bucket(under_load.waste_by_bucket(run), costs)
    labels = [f"{row.bucket}: {row.batches:,}" for row in frame.itertuples()]
    saturated = bool(summary.saturation(run))
    title = (
        f"{policy} at {rate / capacity_rps:.0%} load: {figures['fill']:.0%} useful, "
        f"{figures['utilisation']:.0%} busy, {figures['batches']:,} batches\n"
        f"E2EL P50 {figures['median_e2el_ms'] / 1e3:.1f} s, "
        f"P95 {figures['p95_e2el_ms'] / 1e3:.1f} s"
        f"{summary.SATURATED if saturated else ''}"
    )
    grouped = frame.assign(label=labels, group="bucket: batches", saturated=False)
    ax = plots.ledger_shares(grouped, title)
    ax.set_xlim(0, 100)  # whatever the setting
    return Drawn(ax, server_settings.of_buckets([cost.bucket for cost in costs], rules))


def _every_bucket(frame: pd.DataFrame, costs: Sequence[BucketCost]) -> pd.DataFrame:
    """The waste of every compiled bucket, in one order; nothing in those without a batch."""
    names = [str(cost.bucket) for cost in costs]
    return frame.set_index("bucket").reindex(names, fill_value=0).reset_index(names="bucket")
