"""04_does_tensor_parallel_pay: the capacity of every division of some cards."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from spyre_bench.explore.panel import panel
from spyre_bench.explore.result import Drawn

if TYPE_CHECKING:
    import pandas as pd
    from ipywidgets import Box

    from spyre_bench.studies.capacity import Service
    from spyre_bench.studies.deployments import Deployment

FEW_A_CARD = 20
FEW_SIZES = (1, 4)
MOST_MICROSECONDS = 1000.0


def does_tp_pay(parameters: Any, **settings: Any) -> Box:
    """Model, number of cards, dtype, workload and all-reduce latency over the capacity of every
    division of these cards. `parameters` are those of the notebook, `settings` values of the
    controls to begin with."""
    import ipywidgets as widgets

    from spyre_bench.model_sizes import DTYPES, PRESETS
    from spyre_bench.workload.length_table import WORKLOADS

    names = list(dict.fromkeys([parameters.workload, *WORKLOADS]))
    controls = {
        "model": widgets.Dropdown(options=sorted(PRESETS), value=parameters.model),
        "tp": widgets.Dropdown(
            options=sorted({1, 2, 4, 8, *parameters.cards}),
            value=max(parameters.cards),
            description="cards",
        ),
        "dtype": widgets.Dropdown(options=list(DTYPES), value=parameters.dtype),
        "workload": widgets.Dropdown(options=names, value=parameters.workload),
        "all_reduce_us": widgets.FloatSlider(
            value=parameters.all_reduce_us,
            max=MOST_MICROSECONDS,
            step=10,
            continuous_update=False,
            description="all-reduce at least [µs], 0: the card's range",
        ),
    }
    note = (
        f"Modelled, not measured. At most {FEW_A_CARD} requests per card and, unless buckets are "
        f"given, fewer candidates than in the notebook, so that the picture follows at once; "
        f"figures differ from those above."
    )
    few = functools.cache(functools.partial(few_deployments, parameters))
    draw = functools.partial(draw_deployments, few, parameters.policy)
    return panel(draw, controls, note, name="does_tp_pay", settings=settings)


def few_deployments(
    parameters: Any, model: str, tp: int, dtype: str, workload: str
) -> tuple[Service, list[Deployment]]:
    """Every division of `tp` cards with its buckets, those given if there are any, and a service of
    few requests."""
    from spyre_bench.model_sizes import preset
    from spyre_bench.shapes import Bucket
    from spyre_bench.simulate.scenario import Scenario
    from spyre_bench.studies.capacity import Service
    from spyre_bench.studies.deployments import propose

    requests_a_card = min(FEW_A_CARD, parameters.requests_a_card)
    scenario = Scenario.of(parameters, workload=workload, requests=requests_a_card * tp)
    limits_ms = {"ttft": parameters.ttft_ms, "tpot": parameters.tpot_ms}
    requests, rules = scenario.load_workload(), scenario.rules()
    service = Service(requests, limits_ms, requests_a_card, rules, share=parameters.share)
    given = [Bucket.parse(word) for word in parameters.buckets.split()]
    settings = {"dtype": dtype, "k": parameters.k, "batch_sizes": FEW_SIZES, "buckets": given}
    return service, propose(preset(model), [tp], service, **settings)


def draw_deployments(
    few: Callable[..., tuple[Service, list[Deployment]]],
    policy: str,
    model: str,
    tp: int,
    dtype: str,
    workload: str,
    all_reduce_us: float,
) -> Drawn:
    """The capacity of every division of `tp` cards, an all-reduce taking at least so many
    microseconds (0: the card's range); the buckets are those of the card's range."""
    from spyre_bench import plots
    from spyre_bench.cost.card_parameters import with_all_reduce
    from spyre_bench.studies.deployments import best, capacities

    service, deployments = few(model, tp, dtype, workload)
    card = with_all_reduce(all_reduce_us)
    moved = [
        it if it.refused else replace(it, cost=replace(it.cost, card=card)) for it in deployments
    ]
    capacity = capacities(moved, service)
    winners = best(capacity).set_index("end")["deployment"]
    title = f"{model}, {dtype}, {workload}: {winners['value']} serves most at the nominal values"
    if winners.nunique() == 1:
        title += "\nand at both ends of their range"
    elif winners["slow"] == winners["fast"]:
        title += f",\n{winners['slow']} at both ends of their range"
    else:
        title += f",\n{winners['slow']} at the pessimistic end, {winners['fast']} at the optimistic"
    ax = plots.capacities(capacity, title)
    return Drawn(ax, *_served(capacity, winners["value"], policy))


def _served(
    capacity: pd.DataFrame, winner: str, policy: str
) -> tuple[dict[str, Any], str] | tuple[None, str]:
    """What each engine of the winner at the nominal values is started with; nothing where no
    deployment serves the requests."""
    from spyre_bench.choose import server_settings
    from spyre_bench.policy.static import Policy
    from spyre_bench.shapes import BucketSet

    rows = capacity[(capacity["deployment"] == winner) & (capacity["end"] == "value")]
    if rows.empty:
        return None, ""
    buckets = BucketSet.parse(rows["buckets"].item())
    return (
        server_settings.of_buckets(buckets, Policy(policy)),
        f"--tensor-parallel-size {rows['tp'].item()}",
    )
