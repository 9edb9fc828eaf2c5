"""01_which_buckets: the advised set for a workload, a number of buckets and a budget."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

from spyre_bench.explore.panel import panel
from spyre_bench.explore.result import Drawn
from spyre_bench.explore.work import Step, Steps

if TYPE_CHECKING:
    from ipywidgets import Box

    from spyre_bench.choose.advise import Advice
    from spyre_bench.cost.bucket_cost import CostModel
    from spyre_bench.policy.static import Policy
    from spyre_bench.workload.workload import Workload

FEW_REQUESTS = 600
FEW_CANDIDATES = {"prompt_lengths": 6, "new_tokens": 3}


def which_buckets(parameters: Any, most: int, **settings: Any) -> Box:
    """Workload, number of buckets and warmup budget over the map of the advised set. `parameters`
    are those of the notebook, `most` is the number of buckets that it allows, `settings` are values
    of the controls to begin with."""
    import ipywidgets as widgets

    from spyre_bench.cost.source import load_cost
    from spyre_bench.workload.length_table import WORKLOADS

    table = load_cost(parameters.cost)
    names = list(dict.fromkeys([parameters.workload, *WORKLOADS]))
    most_s = math.ceil(2 * most * max(row.compile_s for row in table.rows))
    controls = {
        "workload": widgets.Dropdown(options=names, value=parameters.workload),
        "k": widgets.IntSlider(value=most, min=1, max=2 * most, continuous_update=False),
        "warmup_budget_s": widgets.FloatSlider(
            value=min(parameters.warmup_budget_s, most_s),
            max=most_s,
            step=1,
            continuous_update=False,
            description="warmup budget [s], 0: none",
        ),
    }
    note = (
        f"Advised at a load of {parameters.load:.0%}, as above. A moved control chooses for at "
        f"most {FEW_REQUESTS} requests, from fewer candidates than in the notebook, so that the "
        f"picture follows at once; its seconds differ a little from those above."
    )
    for_all = functools.partial(choose_for_all, parameters, table)
    return panel(
        functools.partial(draw_choice, parameters, table),
        controls,
        note,
        ("Choose for the whole workload", for_all),
        name="which_buckets",
        settings=settings,
    )


def draw_choice(
    parameters: Any, table: CostModel, workload: str, k: int, warmup_budget_s: float
) -> Drawn:
    """The set of at most `k` buckets that is advised for a few requests of a workload, as a map.
    ValueError where none is within the budget (seconds, 0 for none), or the cost table covers no
    request."""
    covered, drawn = _covered(parameters, table, workload, min(FEW_REQUESTS, parameters.requests))
    advice = _advised(parameters, table, covered, k, warmup_budget_s, **FEW_CANDIDATES)
    return _map(_rules(parameters), covered, advice, drawn)


def choose_for_all(
    parameters: Any, table: CostModel, workload: str, k: int, warmup_budget_s: float
) -> Steps:
    """The same for all requests of the notebook, from all candidates, and in the title what the
    last bucket saves."""
    yield Step(0.0, f"drawing {parameters.requests:,} requests")
    covered, drawn = _covered(parameters, table, workload, parameters.requests)
    chosen = []
    for number in range(max(1, k - 1), k + 1):
        yield Step((1 + len(chosen)) / 3, f"{number} of {k} buckets for {len(covered):,} requests")
        chosen.append(_advised(parameters, table, covered, number, warmup_budget_s))
    compared = ""
    if len(chosen) > 1:
        fewer_s, seconds = map(_seconds_per_request, chosen)
        more = "less" if seconds <= fewer_s else "more"
        compared = f", {abs(1 - seconds / fewer_s):.0%} {more} than with {k - 1}"
    return functools.partial(_map, _rules(parameters), covered, chosen[-1], drawn, compared)


def _covered(
    parameters: Any, table: CostModel, workload: str, requests: int
) -> tuple[Workload, int]:
    """Requests of a workload that the cost table covers, and how many there were before."""
    from spyre_bench.choose.advise import within
    from spyre_bench.simulate.scenario import Scenario

    drawn = Scenario.of(parameters, workload=workload, requests=requests).load_workload()
    return within(drawn, table), len(drawn)


def _advised(
    parameters: Any,
    table: CostModel,
    requests: Workload,
    k: int,
    warmup_budget_s: float,
    **numbers: int,
) -> Advice:
    from spyre_bench.choose.optimize import Limits
    from spyre_bench.studies.advised import advise_at

    limits = Limits(k, warmup_budget_s or None)
    settings = {"batch_sizes": table.batch_sizes, "policy": _rules(parameters), **numbers}
    return advise_at(parameters.load, requests, table, limits, **settings)


def _rules(parameters: Any) -> Policy:
    from spyre_bench.simulate.scenario import Scenario

    return Scenario.of(parameters).rules()


def _seconds_per_request(advice: Advice) -> float:
    """Device seconds of the advised set on the held-out half."""
    from spyre_bench.choose.advise import per_request

    replayed = per_request(advice)
    return float(replayed.loc[replayed["advised"], "held_out_busy_s"].item())


def _map(
    rules: Policy, requests: Workload, advice: Advice, drawn: int, compared: str = ""
) -> Drawn:
    from spyre_bench import plots
    from spyre_bench.choose import server_settings
    from spyre_bench.metrics.bounds import bound_by_bucket

    buckets = f"{len(advice.costs)} bucket{'s' if len(advice.costs) > 1 else ''}"
    compile_s = sum(cost.compile_s for cost in advice.costs)
    title = (
        f"{drawn:,} requests, {buckets} advised: {_seconds_per_request(advice):.3f} "
        f"device seconds per request{compared}, {compile_s:.0f} s of compiling"
    )
    if len(requests) < drawn:
        title += f"\n{1 - len(requests) / drawn:.0%} of the requests are beyond the cost table"
    ax = plots.buckets(bound_by_bucket(requests, advice.costs), requests.frame(), title)
    return Drawn(ax, server_settings.of_buckets(advice.buckets, rules))
