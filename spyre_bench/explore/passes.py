"""00_first_look: the measured passes and their waste, batch by batch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from spyre_bench.explore.panel import panel
from spyre_bench.explore.result import Drawn

if TYPE_CHECKING:
    import pandas as pd
    from ipywidgets import Box

EVERY = "every bucket"
SHOWN = ("passes", "waste")


def first_look(passes: pd.DataFrame, **settings: Any) -> Box:
    """Bucket and number of batches over the timeline or the waste of these. `passes` as in
    `pass_log.read_passes`; `settings` are values of the controls to begin with."""
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
    note = "The passes that were measured; nothing runs again."
    draw = functools.partial(draw_batches, passes)
    return panel(draw, controls, note, name="first_look", settings=settings)


def draw_batches(passes: pd.DataFrame, show: str, bucket: str, first: int) -> Drawn:
    """The timeline or the waste of the first batches of a bucket, or of all, and in the title how
    long they took and what of it was useful."""
    from spyre_bench import plots
    from spyre_bench.choose import server_settings
    from spyre_bench.metrics import waste
    from spyre_bench.shapes import Bucket

    shown = passes if bucket == EVERY else passes[passes["bucket"] == bucket]
    shown = shown[shown["batch"].isin(shown["batch"].unique()[:first])]
    ledger, kind_s = waste.waste(shown), shown.groupby("kind")["seconds"].sum()
    what = f"{len(ledger)} batch{'es' if len(ledger) > 1 else ''} of {bucket}"
    ran = server_settings.of_buckets(map(Bucket.parse, passes["bucket"].unique()))
    if show == "waste":
        fill = ledger["useful"].sum() / ledger["computed"].sum()
        title = f"{what}: {fill:.0%} of {ledger['computed'].sum():,} computed tokens were useful"
        return Drawn(plots.waste_ledger(ledger, title), ran)
    title = f"{what}: {kind_s.sum():.2f} s in passes, {kind_s.get('decode', 0) / kind_s.sum():.0%} "
    return Drawn(plots.pass_timeline(shown, f"{title}of it decoding"), ran)
