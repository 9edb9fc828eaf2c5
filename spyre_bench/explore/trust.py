"""05_can_we_trust_the_simulator: single requests of a run, measured and simulated."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from spyre_bench.explore.panel import panel
from spyre_bench.explore.result import Drawn

if TYPE_CHECKING:
    import pandas as pd
    from ipywidgets import Box

EVERY = "every run"
METRICS = ("e2el", "ttft", "tpot")


def trust_the_simulator(compared: pd.DataFrame, **settings: Any) -> Box:
    """Run, quantity and least error over the requests. `compared`: as in
    `validate.check.Check.by_request`; `settings`: values of the controls to begin with."""
    import ipywidgets as widgets

    controls = {
        "run": widgets.Dropdown(options=[EVERY, *dict.fromkeys(compared["run"])]),
        "metric": widgets.Dropdown(
            options=[(metric.upper(), metric) for metric in METRICS], description="quantity"
        ),
        "least": widgets.FloatSlider(
            value=0,
            max=100,
            step=1,
            continuous_update=False,
            description="off by at least [%]",
        ),
    }
    note = "The requests that were measured; nothing is sent again."
    draw = functools.partial(draw_requests, compared)
    return panel(draw, controls, note, name="trust_the_simulator", settings=settings)


def draw_requests(compared: pd.DataFrame, run: str, metric: str, least: float) -> Drawn:
    """The requests of a run whose simulated time is off by `least` per cent or more. ValueError
    where there is none."""
    from spyre_bench import plots
    from spyre_bench.validate.compare import direction

    compared = compared[compared[f"measured_{metric}_s"] > 0]  # one output token has no TPOT
    requests = compared if run == EVERY else compared[compared["run"] == run]
    bias, off = requests[f"error_{metric}"], requests[f"error_{metric}"].abs()
    far = requests[off >= least / 100]
    if far.empty:
        raise ValueError(
            f"no request of {run} is off by {least:g} % or more in {metric.upper()}: the furthest "
            f"is {off.max():.1%}"
        )
    which = f"the {len(far)} requests of {run}"
    if least:
        which = (
            f"the {len(far)} of {len(requests)} requests of {run} that are off by {least:g} % or "
            f"more"
        )
    middle = float(bias[far.index].median())
    way = direction(metric, middle) or "no bias"
    title = f"{metric.upper()} is off by {off[far.index].median():.1%} either way, "
    title += f"{middle:+.1%} signed ({way}), in the median of\n{which}"
    return Drawn(plots.measured_and_simulated(far, title, metric, among=compared))
