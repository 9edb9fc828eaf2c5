"""02_what_does_warmup_cost: how many of the measured buckets to compile."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from spyre_bench.explore.panel import panel
from spyre_bench.explore.result import Drawn

if TYPE_CHECKING:
    import pandas as pd
    from ipywidgets import Box

    from spyre_bench.shapes import Bucket


def what_warmup_costs(predicted: pd.DataFrame, fallback: Bucket, **settings: Any) -> Box:
    """Number of buckets, kind of start and number of output tokens over the requests after which
    each bucket has paid. `predicted` as in `startup.predict`; `settings` are values of the
    controls to begin with."""
    import ipywidgets as widgets

    others = predicted["bucket"].nunique() - 1
    most_tokens = fallback.new_tokens
    controls = {
        "start": widgets.Dropdown(options=["cold", "warm"]),
        "buckets": widgets.IntSlider(
            value=others,
            min=1,
            max=others,
            continuous_update=False,
            description=f"buckets beside {fallback}",
        ),
        "output_tokens": widgets.IntSlider(
            value=max(2, most_tokens // 2),
            min=2,
            max=max(3, most_tokens),
            continuous_update=False,
            description="output [tokens]",
        ),
    }
    note = (
        f"From the starts that were measured; nothing starts again. Besides {fallback}, "
        f"which takes every request, the buckets are compiled that pay soonest."
    )
    draw = functools.partial(draw_start, predicted, fallback)
    return panel(draw, controls, note, name="what_warmup_costs", settings=settings)


def draw_start(
    predicted: pd.DataFrame, fallback: Bucket, start: str, buckets: int, output_tokens: int
) -> Drawn:
    """After how many requests the `buckets` that pay soonest in a start have paid, and in the title
    how long a start with them and the fallback takes."""
    from spyre_bench import plots
    from spyre_bench.choose import server_settings
    from spyre_bench.shapes import Bucket
    from spyre_bench.studies.startup import break_even, start_s

    paid = break_even(predicted, fallback, output_tokens)
    soonest = paid[paid["start"] == start].sort_values("requests")["bucket"].head(buckets)
    shown = paid[paid["bucket"].isin(soonest)].set_index("bucket").loc[soonest].reset_index()
    last = shown.loc[shown["start"] == start, "requests"].max()
    title = (
        f"A {start} start with {len(soonest) + 1} buckets takes "
        f"{start_s(predicted, start, [str(fallback), *soonest]):.1f} s; "
    )
    title += "some never pay" if last == float("inf") else f"all pay within {last:,.0f} requests"
    compiled = server_settings.of_buckets([fallback, *map(Bucket.parse, soonest)])
    return Drawn(plots.break_even(shown, title, among=paid), compiled)
