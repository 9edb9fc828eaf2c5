"""00_first_look: the measured passes and their waste, batch by batch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from spyre_bench.explore.panel import panel

if TYPE_CHECKING:
    import pandas as pd
    from ipywidgets import Box
    from matplotlib.axes import Axes

EVERY = "every bucket"
SHOWN = ("passes", "waste")


def first_look(passes: pd.DataFrame) -> Box:
    """Bucket and number of batches over the timeline or the waste of these. `passes` as in
    `pass_log.read_passes`."""
    import ipywidgets as widgets

    batches = passes["batch"].nunique()
    controls = {
        "show": widgets.Dropdown(options=SHOWN),
        "bucket": widgets.Dropdown(options=[EVERY, *dict.fromkeys(passes["bucket"])]),
        "first": widgets.IntSlider(
            value=batches,
            min=1,
            max=max(2, batches),
            continuous_update=False,
            description="first batches",
        ),
    }
    note = "The passes that were measured above; nothing runs again."
    return panel(functools.partial(draw_batches, passes), controls, note)


def draw_batches(passes: pd.DataFrame, show: str, bucket: str, first: int) -> Axes:
    """The timeline or the waste of the first batches of a bucket, or of all, and in the title how
    long they took and what of it was useful."""
    from spyre_bench import plots
    from spyre_bench.metrics import waste

    shown = passes if bucket == EVERY else passes[passes["bucket"] == bucket]
    shown = shown[shown["batch"].isin(shown["batch"].unique()[:first])]
    ledger, kind_s = waste.waste(shown), shown.groupby("kind")["seconds"].sum()
    what = f"{len(ledger)} batch{'es' if len(ledger) > 1 else ''} of {bucket}"
    if show == "waste":
        fill = ledger["useful"].sum() / ledger["computed"].sum()
        title = f"{what}: {fill:.0%} of {ledger['computed'].sum():,} computed tokens were useful"
        return plots.waste_ledger(ledger, title)
    title = f"{what}: {kind_s.sum():.2f} s in passes, {kind_s.get('decode', 0) / kind_s.sum():.0%} "
    return plots.pass_timeline(shown, f"{title}of it decoding")
