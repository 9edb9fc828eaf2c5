import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from spyre_bench.workload.length_table import (
    FOLDER,
    GROUPS,
    WORKLOADS,
    LengthTable,
    is_length_table,
    shipped_table,
)
from spyre_bench.workload.trace_files import read_trace

TRACES = {
    "azure_conv": "azure_conv_2023",
    "azure_code": "azure_code_2023",
    "burstgpt": "burstgpt_first7days",
    "mooncake_conversation": "mooncake_conversation",
    "fmperf_ibm": "fmperf_ibm_production",
    "sharegpt": "sharegpt_8k",
    "arxiv_summarization": "arxiv_summarization",
}
tokens = st.integers(1, 5000)
lengths = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=300).map(
    lambda rows: np.array(rows).T
)


def rng(seed=0):
    return np.random.default_rng(seed)


def trace_of(shared, name):
    return read_trace(shared / "traces" / f"{TRACES[name]}.csv.gz")


# --- what ships -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_shipped_table_samples_both_marginals_of_its_trace(shared, name):
    trace = trace_of(shared, name)
    prompt_tokens, output_tokens = shipped_table(name).sample(200_000, rng())
    assert ks_2samp(trace.prompt_tokens, prompt_tokens).statistic <= 0.01  # asked for: 0.02
    assert ks_2samp(trace.output_tokens, output_tokens).statistic <= 0.01


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_shipped_table_keeps_the_mean_output_of_each_prompt_quintile(shared, name):
    trace = trace_of(shared, name)
    edges = np.quantile(trace.prompt_tokens, [0.2, 0.4, 0.6, 0.8])

    def means(prompt_tokens, output_tokens):
        quintile = np.searchsorted(edges, prompt_tokens)
        return [output_tokens[quintile == k].mean() for k in range(5)]

    sampled = means(*shipped_table(name).sample(200_000, rng()))
    expected = means(trace.prompt_tokens, trace.output_tokens)
    assert sampled == pytest.approx(expected, rel=0.03)  # asked for: 5 %


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_shipped_table_is_what_the_code_fits_to_its_trace(shared, name, tmp_path):
    trace = trace_of(shared, name)
    fitted = LengthTable.fit(trace.prompt_tokens, trace.output_tokens, trace.requests_per_s)
    fitted.write(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == (FOLDER / f"{name}.csv").read_text()


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_shipped_table_counts_the_requests_that_its_source_states(name):
    sources = pd.read_csv(FOLDER / "sources.csv").set_index("name")
    table = shipped_table(name)
    assert table.requests.sum() == sources.loc[name, "requests"]
    assert (table.requests_per_s is None) == (sources.loc[name, "arrivals"] == "none")


def test_every_shipped_table_has_its_attribution_and_nothing_else_ships():
    files = {path.stem for path in FOLDER.iterdir()}
    assert files == {*WORKLOADS, "sources"}
    sources = pd.read_csv(FOLDER / "sources.csv").set_index("name")
    assert set(sources.index) == set(WORKLOADS)
    assert sources["source"].str.contains("github.com/").all()
    assert sources["licence"].str.contains("CC-BY-4.0|Apache-2.0").all()


def test_the_shipped_tables_stay_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 300_000


# --- laws -----------------------------------------------------------------------------------------


@given(lengths, st.integers(0, 2**32))
def test_samples_stay_within_the_lengths_of_the_trace(rows, seed):
    for real, drawn in zip(rows, LengthTable.fit(*rows).sample(100, rng(seed)), strict=True):
        assert drawn.dtype == np.int32
        assert real.min() <= drawn.min()
        assert drawn.max() <= real.max()


@given(lengths)
def test_groups_hold_every_request_once_and_never_part_equal_prompts(rows):
    table = LengthTable.fit(*rows)
    assert table.requests.sum() == len(rows[0])
    assert len(table.requests) <= GROUPS
    lowest, highest = table.prompt_quantiles[:, 0], table.prompt_quantiles[:, -1]
    assert (highest[:-1] < lowest[1:]).all()


@given(lengths, st.none() | st.floats(0.001, 1000))
def test_a_table_reads_back_as_it_was_written(tmp_path_factory, rows, rate):
    path = tmp_path_factory.mktemp("table") / "table.csv"
    table = LengthTable.fit(*rows, rate)
    table.write(path)
    again = LengthTable.read(path)
    assert again.requests_per_s == rate
    for name in (
        "requests",
        "prompt_quantiles",
        "output_quantiles",
        "prompt_levels",
        "output_levels",
    ):
        assert (getattr(again, name) == getattr(table, name)).all()


def test_the_same_seed_samples_the_same():
    table = shipped_table("azure_code")
    for one, two in zip(table.sample(1000, rng(3)), table.sample(1000, rng(3)), strict=True):
        assert (one == two).all()
    assert (table.sample(1000, rng(3))[0] != table.sample(1000, rng(4))[0]).any()


def test_a_frequent_prompt_length_keeps_its_share_exactly_in_the_table():
    prompt_tokens = np.concatenate([np.arange(1, 501), np.full(500, 777), np.arange(1001, 1501)])
    table = LengthTable.fit(prompt_tokens, np.ones(1500, int))
    atom = (table.prompt_quantiles == 777).all(axis=1)
    assert table.requests[atom].tolist() == [500]


def test_a_cap_on_the_answers_stays_an_atom():
    output_tokens = np.minimum(np.arange(1, 1001), 600)  # 40.1 % stop at the cap
    drawn = LengthTable.fit(np.ones(1000, int), output_tokens).sample(100_000, rng())[1]
    assert np.mean(drawn == 600) == pytest.approx(0.401, abs=0.03)
    assert drawn.max() == 600


def test_outputs_depend_on_prompts_as_in_the_trace():
    prompt_tokens = np.arange(1, 6401)
    prompt, output = LengthTable.fit(prompt_tokens, prompt_tokens).sample(10_000, rng())
    assert np.abs(prompt - output).max() < 100  # a group of 6400 / 64 neighbours


# --- files ----------------------------------------------------------------------------------------

GOOD = "requests,requests_per_s,prompt_q0,prompt_q1,output_q0,output_q1\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arrival_s,prompt_tokens,output_tokens\n0,1,2\n", "no length table.*prompt_q0"),
        (GOOD, "no length table.*0 lines"),
        (GOOD + "5,,1,2,3,x\n", "no length table.*'x'"),
        (GOOD + "5,,1,2,1,3\n0,,1,2,1,3\n", "line 3: a group has 1 request or more"),
        (GOOD + "5,,1,2,3,2\n", "line 2: .*ascend from 1 token"),
        (GOOD + "5,,0,2,1,2\n", "line 2: .*ascend from 1 token"),
        (GOOD + "5,,1,2,1,\n", "line 2: .*ascend from 1 token"),
        (GOOD.replace("prompt_q1", "prompt_q0.9") + "5,,1,2,1,3\n", "ascend from q0 to q1"),
    ],
)
def test_a_bad_table_is_refused_with_file_and_line(tmp_path, text, words):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)table\.csv.*{words}"):
        LengthTable.read(path)


def test_a_table_is_told_from_a_trace_by_its_columns(tmp_path):
    (tmp_path / "trace.csv").write_text("prompt_tokens,output_tokens\n1,2\n")
    (tmp_path / "garbage.csv").write_bytes(b"\xff\xfe\x00")
    assert is_length_table(FOLDER / "azure_conv.csv")
    assert not is_length_table(tmp_path / "trace.csv")
    assert not is_length_table(tmp_path / "garbage.csv")


def run_module(*arguments):
    command = [sys.executable, "-m", "spyre_bench.workload.length_table", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_module_makes_a_table_of_a_trace_of_ones_own(tmp_path):
    trace, out = tmp_path / "trace.csv", tmp_path / "out.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,1\n2,20,2\n4,30,3\n")
    done = run_module(trace, out)
    assert done.returncode == 0
    assert "3 requests" in done.stdout
    table = LengthTable.read(out)
    assert table.requests.sum() == 3
    assert table.requests_per_s == 0.5


def test_the_module_says_what_is_wrong_with_a_trace_without_a_traceback(tmp_path):
    (tmp_path / "trace.csv").write_text("prompt_tokens,output_tokens\n0,2\n")
    done = run_module(tmp_path / "trace.csv", tmp_path / "out.csv")
    assert done.returncode == 1
    assert "trace.csv line 2: prompt_tokens 0 is wrong" in done.stderr
    assert "Traceback" not in done.stderr
    assert run_module().stderr.startswith("usage:")
