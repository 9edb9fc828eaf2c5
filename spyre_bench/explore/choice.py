"""01_which_buckets: the proved choice for a workload, a number of buckets and a budget."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from spyre_bench.explore.panel import panel
from spyre_bench.explore.work import Step, Steps

if TYPE_CHECKING:
    from ipywidgets import Box
    from matplotlib.axes import Axes

    from spyre_bench.choose.optimize import Choice
    from spyre_bench.cost.bucket_cost import BucketCost, CostModel
    from spyre_bench.workload.workload import Workload

FEW_REQUESTS = 600
FEW_CANDIDATES = {"prompt_lengths": 6, "new_tokens": 3}


def which_buckets(parameters: Any, k: int) -> Box:
    """Workload, number of buckets and warmup budget over the map of the proved choice. `parameters`
    are those of the notebook, `k` the number that it chose."""
    import ipywidgets as widgets

    from spyre_bench.cost.source import load_cost
    from spyre_bench.workload.length_table import WORKLOADS

    table = load_cost(parameters.cost)
    names = list(dict.fromkeys([parameters.workload, *WORKLOADS]))
    most_s = math.ceil(2 * k * max(row.compile_s for row in table.rows))
    controls = {
        "workload": widgets.Dropdown(options=names, value=parameters.workload),
        "k": widgets.IntSlider(value=k, min=1, max=2 * k, continuous_update=False),
        "warmup_budget_s": widgets.FloatSlider(
            value=min(parameters.warmup_budget_s, most_s),
            max=most_s,
            step=1,
            continuous_update=False,
            description="warmup budget [s], 0: none",
        ),
    }
    note = (
        f"A moved control chooses for at most {FEW_REQUESTS} requests, from fewer candidates "
        f"than in the notebook, so that the picture follows at once; its seconds differ a little "
        f"from those above."
    )
    few = functools.cache(functools.partial(few_requests, parameters, table))
    for_all = functools.partial(choose_for_all, parameters, table)
    return panel(
        functools.partial(draw_choice, few),
        controls,
        note,
        ("Choose for the whole workload", for_all),
    )


def few_requests(
    parameters: Any, table: CostModel, workload: str
) -> tuple[Workload, tuple[BucketCost, ...], int]:
    """A few requests of a workload that the cost table covers, the candidates for them with their
    costs, and how many requests there were before."""
    few = min(FEW_REQUESTS, parameters.requests)
    covered, drawn = _covered(parameters, table, workload, few)
    return covered, _candidates(covered, table, **FEW_CANDIDATES), drawn


def _covered(
    parameters: Any, table: CostModel, workload: str, requests: int
) -> tuple[Workload, int]:
    from spyre_bench.choose.advise import within
    from spyre_bench.simulate.scenario import Scenario

    drawn = Scenario.of(parameters, workload=workload, requests=requests).load_workload()
    return within(drawn, table), len(drawn)


def _candidates(requests: Workload, table: CostModel, **most: int) -> tuple[BucketCost, ...]:
    from spyre_bench.choose.advise import priced_candidates

    return priced_candidates(requests, table, table.batch_sizes, **most)


def draw_choice(few: Callable[[str], tuple], workload: str, k: int, warmup_budget_s: float) -> Axes:
    """The proved choice of `k` buckets for the few requests of a workload, as a map. ValueError
    where none is within the budget (seconds, 0 for none), or the cost table covers no request."""
    from spyre_bench.choose.optimize import Limits, choose_buckets

    requests, costs, drawn = few(workload)
    choice = choose_buckets(requests, costs, Limits(k, warmup_budget_s or None))
    return _map(requests, choice, drawn)


def choose_for_all(
    parameters: Any, table: CostModel, workload: str, k: int, warmup_budget_s: float
) -> Steps:
    """The same for all requests of the notebook, from all candidates, and in the title what the
    last bucket saves: one bucket is chosen, then two, up to `k`."""
    from spyre_bench.choose.optimize import Limits, choose_buckets

    yield Step(0.0, f"drawing {parameters.requests:,} requests")
    covered, drawn = _covered(parameters, table, workload, parameters.requests)
    costs, choices = _candidates(covered, table), []
    for number in range(1, k + 1):
        yield Step(number / (k + 1), f"{number} of {k} buckets out of {len(costs)} candidates")
        choices.append(choose_buckets(covered, costs, Limits(number, warmup_budget_s or None)))
    saved = ""
    if len(choices) > 1:
        saved = f", {1 - choices[-1].objective_s / choices[-2].objective_s:.0%} less than {k - 1}"
    return functools.partial(_map, covered, choices[-1], drawn, saved)


def _map(requests: Workload, choice: Choice, drawn: int, saved: str = "") -> Axes:
    from spyre_bench import plots
    from spyre_bench.metrics.bounds import bound_by_bucket

    buckets = f"{len(choice.costs)} bucket{'s' if len(choice.costs) > 1 else ''}"
    title = (
        f"{drawn:,} requests, {buckets}: {choice.objective_s / len(requests):.3f} "
        f"device seconds per request{saved}, {choice.compile_s:.0f} s of compiling"
    )
    if len(requests) < drawn:
        title += f"\n{1 - len(requests) / drawn:.0%} of the requests are beyond the cost table"
    return plots.buckets(bound_by_bucket(requests, choice.costs), requests.frame(), title)
