"""The notebooks of the house: their form, and each of them run through on a tiny model."""

import ast
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import yaml

from spyre_bench.cost.table import write_cost_table
from spyre_bench.review.regression import compare
from spyre_bench.runs.execute import measures
from spyre_bench.runs.records import Traits, matches, read_run
from spyre_bench.studies.sensitivity import deciding
from spyre_bench.workload.source import load_workload
from tests.cost.test_cost import CORNERS, machine

NOTEBOOKS = sorted((Path(__file__).parent.parent.parent / "notebooks").glob("*.ipynb"))
FULL = NOTEBOOKS[0].parent / "full.yaml"
BASELINE = FULL.parent / "baseline"
COMMAND = (sys.executable, "-c", "from spyre_bench.cli.main import main; main()", "run")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook) -> list[str]:
    """The code of each cell as Python sees it: line magics are Jupyter's."""
    return [
        "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def code_lines(cell: str) -> int:
    return sum(1 for line in cell.splitlines() if line.strip())


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_no_output_and_no_trace_of_a_run_is_kept(notebook):
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert "papermill" not in cell.metadata
    assert "papermill" not in notebook.metadata


def test_it_says_whether_it_measures_or_the_parameter_by_which_it_does(notebook):
    measures = Traits.of(notebook.metadata.spyre_bench).measures
    assert "measures" in notebook.metadata.spyre_bench
    if isinstance(measures, str):
        tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
        assert f'{measures}: str = ""' in tagged[0].source, "empty where nobody gives it"


def test_one_that_measures_says_with_what(notebook):
    """So that it is refused at once where that is not there, and not after minutes."""
    traits = Traits.of(notebook.metadata.spyre_bench)
    assert bool(traits.needs) == bool(traits.measures)


def test_the_kernel_is_the_one_that_every_environment_has(notebook):
    assert notebook.metadata.kernelspec.name == "python3"


def test_it_begins_with_a_question_and_ends_with_the_answer(notebook):
    title = notebook.cells[0]
    assert title.cell_type == "markdown"
    assert title.source.splitlines()[0].endswith("?")
    for word in ("**Held fixed:**", "**Ignored:**"):
        assert word in title.source
    assert "run.answer(" in notebook.cells[-1].source


def test_parameters_are_typed_literals_with_a_comment_each(notebook):
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for line, statement in zip(
        tagged[0].source.splitlines(), ast.parse(tagged[0].source).body, strict=True
    ):
        assert isinstance(statement, ast.AnnAssign), line
        assert isinstance(ast.literal_eval(statement.value), str | int | float | bool), line
        assert "  # " in line


def test_only_the_parameters_are_annotated(notebook):
    """`report.start` takes the annotated names for the parameters."""
    annotated = sum(
        isinstance(node, ast.AnnAssign)
        for cell in code_cells(notebook)
        for node in ast.walk(ast.parse(cell))
    )
    assert annotated == len(ast.parse(code_cells(notebook)[0]).body)


def test_it_is_thin(notebook):
    cells = code_cells(notebook)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.While)
    nodes = [node for cell in cells for node in ast.walk(ast.parse(cell))]
    assert not [node for node in nodes if isinstance(node, kinds)]
    assert 12 <= len(notebook.cells) <= 20
    assert sum(map(code_lines, cells)) <= 120
    assert median(map(code_lines, cells)) <= 8


def test_the_figure_that_a_review_shows_is_one_that_it_draws(notebook):
    shown = Traits.of(notebook.metadata.spyre_bench).figure
    assert any(f'run.figure("{shown}"' in cell for cell in code_cells(notebook))


def test_an_answer_has_no_typed_in_number(notebook):
    """Every digit of the last cell is in a format, a subscript or an argument, none in the text."""
    last = ast.parse(code_cells(notebook)[-1])
    formats = [node.format_spec for node in ast.walk(last) if isinstance(node, ast.FormattedValue)]
    texts = [
        part.value
        for node in ast.walk(last)
        if isinstance(node, ast.JoinedStr) and node not in formats
        for part in node.values
        if isinstance(part, ast.Constant)
    ]
    assert texts
    assert not [text for text in texts if any(letter.isdigit() for letter in text)]


def test_the_larger_settings_are_of_every_notebook():
    assert set(yaml.safe_load(FULL.read_text())) == {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("file", [FULL, FULL.with_name("run.yaml")], ids=lambda path: path.name)
def test_settings_in_a_file_are_of_known_notebooks_and_parameters(file):
    sections = yaml.safe_load(file.read_text())
    assert set(sections) <= {path.stem for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        known = papermill.inspect_notebook(path)
        for name, value in sections.get(path.stem, {}).items():
            assert type(value).__name__ == known[name]["inferred_type_name"], name


def run(folder: Path, stem: str, model: Path | None, *words: str) -> dict:
    """The record of a run from another directory; on the tiny model, without a compiler, where the
    notebook has a model."""
    (path,) = [path for path in NOTEBOOKS if path.stem == stem]
    if model:
        words = ("-p", "model", str(model), "-p", "compile_backend", "eager", *words)
    done = subprocess.run(
        [*COMMAND, str(path), "-o", "out", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,  # beside other work
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((folder / "out/latest" / stem / "results.json").read_text())
    assert record["finished"]
    assert record["answer"]
    assert all(check["ok"] for check in record["checks"].values())
    executed = nbformat.read(folder / "out/latest" / stem / "notebook.ipynb", as_version=4)
    shown = [
        output.data
        for cell in executed.cells
        for output in cell.get("outputs", ())
        if output.output_type == "display_data"
    ]
    below = [after.get("text/markdown") for at, after in pairwise(shown) if "image/png" in at]
    assert below == [f"*{caption}*" for caption in record["captions"].values()]
    for name in record["figures"]:
        for suffix in ("png", "svg"):
            assert (folder / "out/latest" / stem / "figures" / f"{name}.{suffix}").exists()
    return record


def calculating() -> list[Path]:
    return [path for path in NOTEBOOKS if not measures(path)]


@pytest.fixture(scope="session")
def calculated(tmp_path_factory) -> Path:
    """The notebooks that only calculate, all at their default parameters, side by side."""
    folder = tmp_path_factory.mktemp("calculated")
    (folder / "notebooks").mkdir()
    for path in calculating():
        (folder / "notebooks" / path.name).symlink_to(path)
    done = subprocess.run(
        [*COMMAND, "--all", "-o", "out"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,  # beside other work
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out"


def test_the_baseline_is_of_every_notebook_that_only_calculates():
    assert set(read_run(BASELINE)) == {path.stem for path in calculating()}


def test_what_is_said_of_ties_is_about_items_that_are_there():
    for record in read_run(BASELINE).values():
        for tie in record.traits.ties:
            for pattern in (tie.choice, tie.objective, *tie.settles):
                assert any(matches(item, (pattern,)) for item in record.items()), pattern


@pytest.mark.slow
def test_the_figures_are_those_of_the_baseline(calculated):
    """Where the change is meant: `spyre-bench baseline update`, and commit what it writes."""
    found = compare(read_run(BASELINE), read_run(calculated))
    different = found[~found["state"].isin(["same", "tied"])]
    assert different.empty, "\n" + different.to_string()


@pytest.mark.slow
@pytest.mark.vllm
def test_a_first_look_answers_eight_prompts_on_two_buckets(tmp_path, tiny_llama):
    words = ("-p", "buckets", "4,64,16 2,384,16", "-p", "max_tokens", "4")
    record = run(tmp_path, "00_first_look", tiny_llama, *words)
    assert set(record["figures"]) == {"timeline", "waste"}
    tables = tmp_path / "out/latest/00_first_look/tables"
    assert len(pd.read_csv(tables / "requests.csv")) == 8
    assert set(pd.read_csv(tables / "waste.csv")["bucket"]) == {"4,64,16", "2,384,16"}
    assert 0 < record["results"]["fill"] < 1


@pytest.mark.slow
def test_buckets_are_chosen_within_k_and_budget_and_held_against_other_schemes(tmp_path):
    """On a machine that obeys the closed form, where every bucket compiles in 10 s."""
    write_cost_table(tmp_path / "cost.csv", machine(*CORNERS))  # P to 1024, N to 512
    words = (
        "-p",
        "cost",
        "cost.csv",
        "-p",
        "requests",
        "400",
        "-p",
        "largest_k",
        "4",
        "-p",
        "k",
        "3",
        "-p",
        "warmup_budget_s",
        "25",
        "-p",
        "reuse",
        "100000",
        "-p",
        "load",
        "2",  # full batches, so that policies differ
    )
    record = run(tmp_path, "01_which_buckets", None, *words)
    assert set(record["figures"]) == {
        "lengths",
        "schemes",
        "k-curve",
        "buckets",
        "held-out",
        "waterfall",
    }
    found = record["results"]
    tables = tmp_path / "out/latest/01_which_buckets/tables"

    drawn = load_workload(
        "azure_conv",
        requests=400,
        rng=np.random.default_rng(0),
        arrivals="poisson:1",
        max_tokens="multiple:2",
    ).scaled(0.25)
    beyond = (drawn.prompt_tokens > 1024) | (drawn.max_tokens > 512)
    assert found["requests_beyond_the_table"] == beyond.sum() > 0

    curve = pd.read_csv(tables / "k_curve.csv")
    assert curve["graphs"].tolist() == [1, 2, 2, 2]
    assert found["knee_buckets"] == 2
    assert curve["device_s"].is_monotonic_decreasing
    assert found["device_s_a_request"] <= curve["device_s"].min() * (1 + 1e-3)

    assert len(found["buckets"]) == 2
    assert found["compile_s"] == 20
    assert str(found["buckets"]) in record["answer"]
    sets = pd.read_csv(tables / "contenders.csv")
    (advised,) = sets[sets["advised"]].itertuples()
    assert [list(map(int, b.split(","))) for b in advised.buckets.split()] == found["buckets"]
    other_s = sets.loc[sets["kind"] == "baseline", "held_out_busy_s"].min()
    assert found["held_out_saving"] == pytest.approx(1 - advised.held_out_busy_s / other_s)

    times = found["over_shape_bound"]
    assert 0 < times["work bound"] < times["shape bound"] == 1 < times["length_aware"]
    assert times["best_fit"] < times["skip"]
    assert f"{times['skip']:.2f}" in record["answer"]


@pytest.mark.slow
@pytest.mark.engine
def test_the_cost_of_warmup_is_measured_in_that_very_run(tmp_path, tiny_llama):
    compared = "eager,layer eager,layer,vllm"
    words = ("-p", "base", "1,64,4", "-p", "compared", compared, "-p", "compared_layers", "1")
    record = run(tmp_path, "02_what_does_warmup_cost", tiny_llama, *words)
    starts = pd.read_csv(tmp_path / "out/latest/02_what_does_warmup_cost/tables/starts.csv")
    assert len(starts) == 16
    assert (starts["measured_at"] >= record["started_at"]).all()
    assert record["results"]["bucket_cold_s"] > 0
    assert set(record["results"]["compile_cold_s"]) == set(compared.split())


@pytest.mark.slow
def test_how_full_batches_are_is_said_of_every_policy_load_and_set_of_buckets(tmp_path):
    words = ("-p", "requests", "400", "-p", "load_shares", "0.2 0.5 3", "-p", "max_waits_s", "0 60")
    record = run(tmp_path, "03_how_full_are_batches", None, *words)
    assert set(record["figures"]) == {"fill-and-seconds", "waste", "latency", "distance", "hold"}
    found = record["results"]
    tables = tmp_path / "out/latest/03_how_full_are_batches/tables"

    sets = pd.read_csv(tables / "bucket_sets.csv")
    fullest, fastest = sets.loc[sets["fill"].idxmax()], sets.loc[sets["busy_s"].idxmin()]
    assert found["fullest_over_fastest"] == pytest.approx(fullest["busy_s"] / fastest["busy_s"])
    assert fullest["set"] in record["answer"]
    assert fullest["set"] in record["figures"]["fill-and-seconds"]

    policies = pd.read_csv(tables / "policies.csv")
    assert len(policies) == policies.groupby(["policy", "load"]).ngroups == 12
    assert not policies.loc[policies["load"] == 0.2, "saturated"].any()
    assert policies.loc[policies["load"] == 3, "saturated"].all()
    assert found["steady_load"] in (0.2, 0.5)
    assert (policies["served"] == 400 - found["left_out_requests"]).all()

    held = pd.read_csv(tables / "hold.csv").pivot(index="max_wait_s", columns="set")
    assert (held["batches"].loc[60] < held["batches"].loc[0]).all()
    assert (held["median_ttft_s"].loc[60] >= held["median_ttft_s"].loc[0]).all()


@pytest.mark.slow
def test_a_table_of_one_batch_size_answers_all_but_what_padding_costs(tmp_path):
    guide = (FULL.parent.parent / "docs/YOUR_CARD.md").read_text()
    table = guide.partition("```csv my_cost.csv\n")[2].partition("```")[0]
    (tmp_path / "my_cost.csv").write_text(table)
    words = ("-p", "cost", "my_cost.csv", "-p", "buckets", "4,256,128")
    words += ("-p", "length_scale", "0.1", "-p", "requests", "300")
    record = run(tmp_path, "03_how_full_are_batches", None, *words)
    assert "what it costs in seconds is not known" in record["answer"]
    assert "paid_share_of_padding" not in record["results"]


@pytest.mark.slow
def test_both_kinds_of_batching_serve_the_same_requests_on_as_many_graphs(tmp_path):
    words = ("-p", "requests", "300", "-p", "load_shares", "0.3 0.9 4", "-p", "graphs", "4")
    record = run(tmp_path, "06_static_or_continuous", None, *words)
    assert set(record["figures"]) == {"paid", "under-load", "chunks", "pareto"}
    found = record["results"]
    tables = tmp_path / "out/latest/06_static_or_continuous/tables"
    queued = pd.read_csv(tables / "queued.csv").set_index("kind")
    ratio = queued.at["continuous", "tokens_per_s"] / queued.at["static", "tokens_per_s"]
    assert found["tokens_gain"] == pytest.approx(ratio)
    assert f"{ratio:.2f} times the tokens/s" in record["answer"]
    assert (queued["graphs"] <= 4).all()
    loads = pd.read_csv(tables / "under_load.csv")
    assert loads.loc[loads["load"] == 4, "saturated"].all()
    ends = pd.read_csv(tables / "card.csv")["end"]
    assert list(ends[:3]) == ["nominal", "pessimistic", "optimistic"]
    assert len(ends) > 3, "and by what public facts contradict each other about"


@pytest.mark.slow
@pytest.mark.vllm
def test_both_kinds_are_served_too_where_a_model_is_named(tmp_path, tiny_llama):
    words = ("-p", "requests", "300", "-p", "load_shares", "0.3 0.9", "-p", "graphs", "4")
    words += ("-p", "served_requests", "8", "-p", "requests_a_card", "10")
    words += ("-p", "served_pairs", "1", "-p", "rows", "4", "-p", "chunk_tokens", "128")
    record = run(tmp_path, "06_static_or_continuous", tiny_llama, *words)
    assert {"servers", "pairs"} <= set(record["figures"])
    folder = tmp_path / "out/latest/06_static_or_continuous"
    assert json.loads((folder / "outcome.json").read_text())["traits"]["measures"] is True
    found = pd.read_csv(folder / "tables/servers.csv")
    assert len(found) == found.groupby(["kind", "run", "source"]).ngroups == 8
    queued = found[found["run"] == "queued"].set_index(["source", "kind"])["tokens_per_s"]
    for source, gain in record["results"]["served_gain"].items():
        assert gain == pytest.approx(queued[source, "continuous"] / queued[source, "static"])
    assert (found["p95_e2el_s"] >= found["p95_ttft_s"]).all()
    decided = record["aims"]["continuous: the simulator decides as the server"]["evidence"]
    assert decided.count("takes the server's steps in all") == 2, "starts may be late when busy"
    assert "of 1 pairs better" in record["answer"] or "pair was disturbed" in record["answer"]
    assert len(pd.read_csv(folder / "tables/pairs.csv")) == 1


@pytest.mark.slow
def test_tensor_parallel_is_held_against_replicas_on_as_many_cards_and_as_a_range(tmp_path):
    words = (
        "-p",
        "cards",
        "2 3 4",
        "-p",
        "requests_a_card",
        "40",
        "-p",
        "k",
        "3",
        "-p",
        "workload",
        "fmperf_ibm",
        "-p",
        "ttft_ms",
        "10000",
        "-p",
        "ranks",
        "1 2",
        "-p",
        "bucket",
        "2,64,8",
        "-p",
        "backend",
        "eager",
    )
    record = run(tmp_path, "04_does_tensor_parallel_pay", None, *words)
    figures = {"all-reduces", "capacity", "intervals", "tornado", "ranks"}
    assert set(record["figures"]) == figures
    found = record["results"]
    tables = tmp_path / "out/latest/04_does_tensor_parallel_pay/tables"

    paged = pd.read_csv(tables / "continuous.csv", keep_default_na=False)
    assert set(paged["deployment"]) == set(pd.read_csv(tables / "capacities.csv")["deployment"])
    assert set(found["continuous_deployments"]) == {"slow", "value", "fast"}

    divided = pd.read_csv(tables / "deployments.csv", keep_default_na=False)
    assert (divided["tp"] * divided["replicas"] == divided["cards"]).all()
    assert divided["deployment"].tolist() == [
        "2 × TP 1",
        "1 × TP 2",
        "3 × TP 1",
        "1 × TP 3",
        "4 × TP 1",
        "2 × TP 2",
        "1 × TP 4",
    ]
    refused = divided[divided["refused"] != ""]
    assert refused["deployment"].tolist() == ["1 × TP 3"]
    assert "does not split over tp=3" in refused["refused"].item()
    assert "1 × TP 3" in record["answer"]

    capacity = pd.read_csv(tables / "capacities.csv")
    four = capacity[capacity["cards"] == 4].set_index(["end", "deployment"])["capacity_rps_a_card"]
    for end in ("fast", "value", "slow"):
        assert found["rps_a_card"][end] == pytest.approx(four[end].max())
        assert found["deployments"][end] == (four[end].idxmax() if four[end].max() else "none")
        assert found["deployments"][end] in record["answer"]
    assert record["answer"].startswith("**Modelled, not measured: on 4 cards granite-3.3-8b")

    leads = pd.read_csv(tables / "tornado.csv")
    assert found["deciding"] == deciding(leads)
    assert {"all_reduce_s", "rest_decode_s"} <= set(leads["parameter"])


@pytest.mark.slow
@pytest.mark.vllm
def test_a_server_is_held_against_its_simulation_in_that_very_run(tmp_path, tiny_llama):
    words = ("-p", "requests", "8", "-p", "load_shares", "0.5", "-p", "gather_s", "0.2")
    record = run(tmp_path, "05_can_we_trust_the_simulator", tiny_llama, *words)
    tables = tmp_path / "out/latest/05_can_we_trust_the_simulator/tables"
    found = pd.read_csv(tables / "requests.csv")
    sent = {"queued": 9, "load 0.5": 8, "continuous, load 0.5": 8}
    assert found["run"].value_counts().to_dict() == sent
    assert (found["measured_e2el_s"] >= found["measured_ttft_s"]).all()
    constants = pd.read_csv(tables / "constants.csv")
    assert set(constants["bucket"]) == {"4,64,16", "2,128,32"}
    assert set(pd.read_csv(tables / "shape_constants.csv")["shape"]) == {
        *("prefill 64,192", "prefill 128,192"),
        *("decode 2,192", "decode 4,192"),
    }
    assert record["results"]["throughput_error"].keys() == sent.keys()
    assert set(pd.read_csv(tables / "told_apart.csv")["run"]) == sent.keys()
    assert record["results"]["batches_agree"].keys() == {"queued", "load 0.5"}
