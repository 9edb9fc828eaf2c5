"""06_static_or_continuous: what seconds are paid for, by rate, chunk and turns."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from spyre_bench.explore.panel import panel
from spyre_bench.explore.result import Drawn

if TYPE_CHECKING:
    from ipywidgets import Box

    from spyre_bench.studies.static_or_continuous import Chosen
    from spyre_bench.workload.workload import Workload

FIRST_REQUESTS = 500


def static_or_continuous(
    workload: Workload, chosen: Chosen, capacity_rps: float, **settings: Any
) -> Box:
    """Rate, longest chunk and decode passes between chunks, over what seconds are paid for.
    `capacity_rps` is the rate that counts as load 1, `settings` are values of the controls to begin
    with."""
    import ipywidgets as widgets

    from spyre_bench.choose.schemes import doublings
    from spyre_bench.shape_set import BLOCK_TOKENS

    first = workload.head(min(FIRST_REQUESTS, len(workload)))
    longest = chosen.shapes.max_chunk
    controls = {
        "rate": widgets.FloatSlider(
            value=0.8 * capacity_rps,
            min=0.05 * capacity_rps,
            max=2 * capacity_rps,
            step=0.05 * capacity_rps,
            readout_format=".3g",
            continuous_update=False,
            description="rate [requests/s]",
        ),
        "chunk_tokens": widgets.Dropdown(
            options=doublings(BLOCK_TOKENS, longest), value=longest, description="longest chunk"
        ),
        "decode_between": widgets.IntSlider(
            value=chosen.rules.decode_between,
            min=1,
            max=16,
            continuous_update=False,
            description="decode passes between chunks",
        ),
    }
    note = f"100 % load is {capacity_rps:.3g} requests/s."
    if len(first) < len(workload):
        note += (
            f" Only the first {len(first):,} of {len(workload):,} requests are simulated, so that "
            f"the picture follows at once."
        )
    draw = functools.partial(draw_kinds, first, chosen, capacity_rps)
    return panel(draw, controls, note, name="static_or_continuous", settings=settings)


def draw_kinds(
    workload: Workload,
    chosen: Chosen,
    capacity_rps: float,
    rate: float,
    chunk_tokens: int,
    decode_between: int,
) -> Drawn:
    """What a request's seconds are paid for at this rate, and in the title how long requests
    wait."""
    from spyre_bench import plots
    from spyre_bench.choose import server_settings
    from spyre_bench.studies import static_or_continuous as study

    rules = replace(chosen.rules, chunk_tokens=chunk_tokens, decode_between=decode_between)
    kinds = replace(chosen, rules=rules).kinds
    frame = study.paid_at(workload, kinds, rate)
    waits = "; ".join(
        f"{row.kind}: P95 of TTFT {row.p95_ttft_s:.3g} s, of TPOT {row.p95_tpot_s * 1e3:.0f} ms"
        f"{' (saturated)' if row.saturated else ''}"
        for row in frame.itertuples()
    )
    ax = plots.paid(frame, f"At {rate / capacity_rps:.0%} load\n{waits}")
    return Drawn(ax, server_settings.of_shapes(chosen.shapes.shapes, rules))
