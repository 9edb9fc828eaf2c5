"""Widgets over tested functions: controls, and below them the figure that these give.

Nothing is computed here that a plain cell could not call, and a notebook draws its figures in
plain cells: a figure that only a widget drew would be missing from the executed notebook.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ipywidgets import Box, Widget
    from matplotlib.axes import Axes

    from spyre_bench.batching import Policy
    from spyre_bench.cost import BucketCost, MeasuredCost
    from spyre_bench.deployments import Deployment, Service
    from spyre_bench.workload import Workload


def panel(draw: Callable[..., Axes], controls: Mapping[str, Widget], note: str = "") -> Box:
    """The controls over the figure of `draw(**values)`, drawn anew whenever a value changes.

    A ValueError of `draw` is for people and appears as a sentence in the panel, the last figure
    staying; any other error appears with its type, since Jupyter would hide it. `note` says what
    the panel does differently from the notebook, such as fewer requests.
    """
    import ipywidgets as widgets

    figure, message = widgets.Image(format="png"), widgets.HTML()

    def redraw(_change: Any = None) -> None:
        try:
            axes = draw(**{name: control.value for name, control in controls.items()})
            figure.value = _png(axes)
            message.value = ""
        except Exception as error:
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            message.value = f"<b>{escape(kind + str(error))}</b>"

    for name, control in controls.items():
        control.description = control.description or name
        control.style.description_width = "initial"
        control.observe(redraw, names="value")
    redraw()
    return widgets.VBox(
        [widgets.HBox(list(controls.values())), message, figure, widgets.HTML(escape(note))]
    )


def _png(axes: Axes) -> bytes:
    import matplotlib.pyplot as plt

    picture = io.BytesIO()
    axes.figure.savefig(picture, format="png", dpi=100, bbox_inches="tight")
    plt.close(axes.figure)
    return picture.getvalue()


# --- 01_which_buckets -----------------------------------------------------------------------------

FEW_REQUESTS = 600
FEW_CANDIDATES = {"prompt_lengths": 6, "new_tokens": 3}


def which_buckets(parameters: Any, k: int) -> Box:
    """Workload, number of buckets and warmup budget over the map of the proved choice. `parameters`
    are those of the notebook, `k` the number that it chose."""
    import ipywidgets as widgets

    from spyre_bench.cost import load_cost
    from spyre_bench.workload import WORKLOADS

    table = load_cost(Path(parameters.cost) if parameters.cost else None)
    names = list(dict.fromkeys([parameters.workload, *WORKLOADS]))
    most_s = math.ceil(2 * k * max(row.compile_s for row in table.rows))
    controls = {
        "workload": widgets.Dropdown(options=names, value=parameters.workload),
        "k": widgets.IntSlider(value=k, min=1, max=2 * k, continuous_update=False),
        "warmup_budget_s": widgets.FloatSlider(
            value=min(parameters.warmup_budget_s, most_s), max=most_s, step=1,
            continuous_update=False, description="warmup budget [s], 0: none",
        ),
    }  # fmt: skip
    note = (
        f"Chosen for at most {FEW_REQUESTS} requests, from fewer candidate buckets than in the "
        f"notebook, so that the picture follows at once; its seconds differ a little from those "
        f"above."
    )
    few = functools.cache(functools.partial(few_requests, parameters, table))
    return panel(functools.partial(draw_choice, few), controls, note)


def few_requests(
    parameters: Any, table: MeasuredCost, workload: str
) -> tuple[Workload, tuple[BucketCost, ...], int]:
    """A few requests of a workload that the cost table covers, the candidates for them with their
    costs, and how many requests there were before."""
    from spyre_bench.advise import priced_candidates, within
    from spyre_bench.workload import load_workload

    drawn = load_workload(
        workload,
        requests=min(FEW_REQUESTS, parameters.requests),
        rng=np.random.default_rng(parameters.seed),
        max_tokens=parameters.max_tokens,
    )
    some = within(drawn.scaled(lengths=parameters.length_scale), table)
    sizes = sorted({row.batch_size for row in table.rows})
    return some, priced_candidates(some, table, sizes, **FEW_CANDIDATES), len(drawn)


def draw_choice(few: Callable[[str], tuple], workload: str, k: int, warmup_budget_s: float) -> Axes:
    """The proved choice of `k` buckets for the few requests of a workload, as a map. ValueError
    where none is within the budget (seconds, 0 for none), or the cost table covers no request."""
    from spyre_bench import plots
    from spyre_bench.bounds import by_bucket
    from spyre_bench.optimize import Limits, choose

    some, costs, drawn = few(workload)
    choice = choose(some, costs, Limits(k, warmup_budget_s or None))
    title = (
        f"{len(choice.costs)} buckets: {choice.objective_s / len(some):.3f} device seconds a "
        f"request, {choice.compile_s:.0f} s of compiling"
    )
    if len(some) < drawn:
        title += f"\n{1 - len(some) / drawn:.0%} of the requests are beyond the cost table"
    return plots.buckets(by_bucket(some, choice.costs), some.frame(), title)


# --- 03_how_full_are_batches ----------------------------------------------------------------------

QUEUED_REQUESTS = 1000


def how_full(
    workload: Workload, costs: Sequence[BucketCost], rules: Policy, capacity_rps: float
) -> Box:
    """Policy, rate and hold timer over the waste in each bucket. `rules` is the policy to begin
    with, `capacity_rps` the rate that counts as load 1."""
    import ipywidgets as widgets

    from spyre_bench.batching import POLICIES

    some = workload.head(min(QUEUED_REQUESTS, len(workload)))
    controls = {
        "policy": widgets.Dropdown(options=list(POLICIES), value=rules.name),
        "rate": widgets.FloatSlider(
            value=0.5 * capacity_rps, min=0.05 * capacity_rps, max=1.5 * capacity_rps,
            step=0.05 * capacity_rps, readout_format=".3g", continuous_update=False,
            description="rate [requests/s]",
        ),
        "max_wait_s": widgets.FloatSlider(
            value=rules.max_wait_s, max=60.0, step=1, continuous_update=False,
            description="max_wait [s]",
        ),
    }  # fmt: skip
    note = f"100 % load is {capacity_rps:.3g} requests/s."
    if len(some) < len(workload):
        note += (
            f" Only the first {len(some):,} of {len(workload):,} requests are simulated, so that "
            f"the picture follows at once; figures differ a little from those above."
        )
    draw = functools.partial(draw_fill, some, costs, rules, capacity_rps)
    return panel(draw, controls, note)


def draw_fill(
    workload: Workload,
    costs: Sequence[BucketCost],
    rules: Policy,
    capacity_rps: float,
    policy: str,
    rate: float,
    max_wait_s: float,
) -> Axes:
    """The waste of each bucket when the workload's arrivals come at `rate` requests/s, and in the
    title what that means for those who wait."""
    from spyre_bench import loads, metrics, plots
    from spyre_bench.simulate import simulate

    rules = replace(rules, name=policy, max_wait_s=max_wait_s)
    trace = simulate(loads.at_rate(workload, rate), costs, rules)
    found = metrics.summary(trace)
    frame = loads.by_bucket(trace)
    labels = [f"{row.bucket}: {row.batches:,}" for row in frame.itertuples()]
    saturated = bool(metrics.saturation(trace))
    title = (
        f"{policy} at {rate / capacity_rps:.0%} load: {found['fill']:.0%} useful, "
        f"{found['utilisation']:.0%} busy, {found['batches']:,} batches\n"
        f"E2EL P50 {found['median_e2el_ms'] / 1e3:.1f} s, P95 {found['p95_e2el_ms'] / 1e3:.1f} s"
        f"{' (saturated: depends on the length of the run)' if saturated else ''}"
    )
    grouped = frame.assign(label=labels, group="bucket: batches", saturated=False)
    return plots.ledger_shares(grouped, title)


# --- 04_does_tensor_parallel_pay ------------------------------------------------------------------

FEW_A_CARD = 20
FEW_SIZES = (1, 4)
MOST_MICROSECONDS = 1000.0


def does_tp_pay(parameters: Any) -> Box:
    """Model, number of cards, dtype, workload and all-reduce latency over the capacity of every
    division of these cards. `parameters` are those of the notebook."""
    import ipywidgets as widgets

    from spyre_bench.model_shapes import DTYPES, PRESETS
    from spyre_bench.workload import WORKLOADS

    names = list(dict.fromkeys([parameters.workload, *WORKLOADS]))
    controls = {
        "model": widgets.Dropdown(options=sorted(PRESETS), value=parameters.model),
        "tp": widgets.Dropdown(
            options=sorted({1, 2, 4, 8, *parameters.cards}), value=max(parameters.cards),
            description="tp, or as many replicas",
        ),
        "dtype": widgets.Dropdown(options=list(DTYPES), value=parameters.dtype),
        "workload": widgets.Dropdown(options=names, value=parameters.workload),
        "all_reduce_us": widgets.FloatSlider(
            value=parameters.all_reduce_us, max=MOST_MICROSECONDS, step=10, continuous_update=False,
            description="all-reduce [µs], 0: range",
        ),
    }  # fmt: skip
    note = (
        f"Modelled, not measured. At most {FEW_A_CARD} requests a card and fewer candidate buckets "
        f"than in the notebook, so that the picture follows at once; figures differ from those "
        f"above."
    )
    few = functools.cache(functools.partial(few_deployments, parameters))
    return panel(functools.partial(draw_deployments, few), controls, note)


def few_deployments(
    parameters: Any, model: str, tp: int, dtype: str, workload: str
) -> tuple[Service, list[Deployment]]:
    """Every division of `tp` cards with its buckets, and a service of few requests."""
    from spyre_bench.batching import Policy
    from spyre_bench.deployments import Service, propose
    from spyre_bench.model_shapes import preset
    from spyre_bench.workload import load_workload

    requests_a_card = min(FEW_A_CARD, parameters.requests_a_card)
    some = load_workload(
        workload, requests=requests_a_card * tp, rng=np.random.default_rng(parameters.seed),
        arrivals=parameters.arrivals, max_tokens=parameters.max_tokens,
    )  # fmt: skip
    limits_ms = {"ttft": parameters.ttft_ms, "tpot": parameters.tpot_ms}
    rules = Policy(parameters.policy)
    service = Service(some, limits_ms, requests_a_card, rules, share=parameters.share)
    settings = {"dtype": dtype, "k": parameters.k, "batch_sizes": FEW_SIZES}
    return service, propose(preset(model), [tp], service, **settings)


def draw_deployments(
    few: Callable[..., tuple[Service, list[Deployment]]],
    model: str,
    tp: int,
    dtype: str,
    workload: str,
    all_reduce_us: float,
) -> Axes:
    """The capacity of every division of `tp` cards, an all-reduce taking at least so many
    microseconds (0: the card's range); the buckets are those of the card's range."""
    from spyre_bench import plots
    from spyre_bench.card import with_all_reduce
    from spyre_bench.deployments import best, capacities

    service, found = few(model, tp, dtype, workload)
    card = with_all_reduce(all_reduce_us)
    moved = [it if it.refused else replace(it, cost=replace(it.cost, card=card)) for it in found]
    capacity = capacities(moved, service)
    tops = best(capacity).set_index("end")["deployment"]
    title = f"{model}, {dtype}, {workload}: {tops['value']} serves most at the middle values,\n"
    title += f"{tops['slow']} at the slow end, {tops['fast']} at the fast"
    return plots.capacities(capacity, title)
