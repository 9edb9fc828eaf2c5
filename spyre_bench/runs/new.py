"""A notebook to begin a study of one's own with: parameters, a calculation, a figure, a panel,
checks and an answer, in the form that the runner and the report expect."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from spyre_bench.files import replace_text

TITLE = """# {question}

Why it matters, in two lines.

- **Swept:** the policy and the load.
- **Held fixed:** the requests, the buckets and what they cost.
- **Ignored:** start-up, the time between passes."""

PARAMETERS = """workload: str = "azure_conv"  # name of a workload, or a trace file
requests: int = 1000  # requests, drawn anew or the first of the file
length_scale: float = 0.25  # factor on all lengths, so that the cost table covers them
arrivals: str = "poisson:1"  # their pattern, stretched to each load; replay: that of the file
max_tokens: str = "multiple:2"  # clients ask: exact, recorded, fixed:256, multiple:2
buckets: str = "2,2048,512 4,768,512 8,384,320"  # batch, prompt, new tokens
policies: str = "best_fit fcfs"  # compared
load_shares: str = "0.3 0.5 0.7 0.9"  # of the capacity
cost: str = ""  # file of a cost table; empty: the one that is shipped
seed: int = 0  # of all random draws
interactive: bool = True  # draw the widget panel
output_directory: str = ""  # where files go; empty: nowhere"""

START = """from spyre_bench import BucketSet, Policy, Scenario, explore, plots
from spyre_bench.runs import report
from spyre_bench.studies import under_load

run = report.start(
    "{question}",
    globals(),
    requests=report.between(10, 10**6),
    buckets=BucketSet.parse,
    load_shares=report.several(float),
)
p = run.parameters"""

STUDY = """scenario = Scenario.of(p)
costs = scenario.costs()
workload = under_load.fitting(scenario.load_workload(), costs)
policies = [Policy(name) for name in p.policies.split()]
capacity_rps = under_load.capacity_rps(workload, costs, policies[0])
run.result("capacity_rps", capacity_rps, better="higher")
loads = p.load_shares
frame = under_load.under_load(workload, costs, policies, loads, capacity_rps)
run.table("under_load", frame)"""

FIGURE = """title = f"Latency by policy: load 1 is {capacity_rps:.2g} requests/s"
run.figure("latency", plots.latency_under_load(frame, title))"""

PANEL = "explore.how_full(workload, costs, policies[0], capacity_rps) if p.interactive else None"

CHECKS = """served, tail_s = frame["served"], frame["p95_e2el_s"]
run.check("every request is served", served.eq(len(workload)).all(), f"{served.min()} at least")
grows = tail_s.iloc[-1] > tail_s.iloc[0]
run.check("latency grows with load", grows, f"{tail_s.iloc[0]:.3g} to {tail_s.iloc[-1]:.3g} s")"""

ANSWER = """best = frame[frame["load"] == loads[-1]].set_index("policy")["p95_e2el_s"]
run.answer(
    f"At load {loads[-1]:g} the lowest P95 of the time to the last token is {best.min():.3g} s, by "
    f"**{best.idxmin()}**."
)"""


def write_notebook(path: Path, question: str) -> Path:
    """Writes it, with `.ipynb` where the name has no suffix. Raises ValueError for a file that is
    there already."""
    path = path if path.suffix == ".ipynb" else path.with_name(f"{path.name}.ipynb")
    if path.exists():
        raise ValueError(f"{path} is there already: name another")
    question = question.replace('"', "'")
    document = new_notebook(
        cells=[
            new_markdown_cell(TITLE.format(question=question)),
            new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
            new_code_cell(START.replace("{question}", question)),
            new_markdown_cell("## The policies under load"),
            new_code_cell(STUDY),
            new_code_cell(FIGURE),
            new_markdown_cell("## By hand"),
            new_code_cell(PANEL),
            new_markdown_cell("## Checks and answer"),
            new_code_cell(CHECKS),
            new_code_cell(ANSWER),
        ],
        metadata={
            "kernelspec": {  # which every environment has
                "display_name": "Python 3 (ipykernel)",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
            "spyre_bench": {"measures": False},
        },
    )
    for number, cell in enumerate(document.cells):
        cell["id"] = str(number)
    nbformat.validate(document)
    replace_text(path, nbformat.writes(document) + "\n")
    return path
