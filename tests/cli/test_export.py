"""`spyre-bench export`, run as a user runs it."""

import json
import shlex
import sys

import pytest

from spyre_bench.cli import main

SERIES = "running,count\n3,10\n0,5\n7,2\n12,1\n"


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `spyre-bench` with these words: code, what it printed, what it said on stderr."""

    def run(words, *more):
        monkeypatch.setattr(sys, "argv", ["spyre-bench", *shlex.split(words), *map(str, more)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def series(tmp_path):
    (tmp_path / "running.csv").write_text(SERIES)
    return tmp_path / "running.csv"


def test_a_series_of_running_requests_becomes_flags(command, series, tmp_path):
    code, out, err = command(
        f"export vllm-rbln --workload {series} --rows 16 --graphs 3 --unseen 0 --out",
        tmp_path / "flags",
    )
    assert code == 0
    assert "3 rows with up to 12 requests running; 1 idle ones left out" in err
    assert "all 2 rules of vllm-rbln hold" in out
    assert '"decode_batch_bucket_manual_buckets": [3, 7, 16]' in out
    assert (tmp_path / "flags").read_text() in out


def test_a_workload_becomes_steps_and_what_was_assumed_is_said(command):
    words = "export vllm-gaudi --workload azure_conv --requests 200 --rows 8"
    code, out, err = command(f"{words} --context-tokens 4096 --graphs widths=2,contexts=3 --json")
    assert code == 0
    assert err == ""
    result = json.loads(out)
    sizes = {name: len(it["sizes"]) for name, it in result["lists"].items()}
    assert (sizes["widths"], sizes["contexts"]) == (2, 3)
    assert result["graphs"] == sizes["prompts"] + 2 * 3
    assert result["findings"] == []
    assert all(rule["source"] for rule in result["rules"])
    assert 0 < result["lists"]["widths"]["held_out"]["padding"] < 1
    assert "derived: 20 ms a step" in result["read_as"][1]
    assert "requests are longer than 4096 tokens and left out" in result["read_as"][2]


def test_own_sizes_are_judged_and_a_broken_rule_is_exit_code_1(command, series):
    words = f"export vllm-rbln --workload {series} --rows 16 --sizes"
    assert command(f"{words} widths=4,16")[0] == 0
    code, out, _ = command(f"{words} widths=4,8")
    assert code == 1
    assert "the largest of widths is 8 and must be max_num_seqs" in out
    assert "7.7% of the need is above the largest of widths" in out


def test_a_budget_of_warmup_seconds_limits_the_graphs(command, series):
    words = f"export sglang --workload {series} --rows 16 --warmup-budget 5"
    code, out, _ = command(f"{words} --graph-s 2.5 --json")
    assert code == 0
    assert json.loads(out)["graphs"] == 2
    code, _, err = command(words)
    assert code == 1
    assert "needs what one graph takes of it" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("nobody --rows 8", "no stack 'nobody': there are vllm,"),
        ("neuron --rows 16", "context_encoding_buckets needs prompts"),
        ("vllm --rows 16 --graphs many", "--graphs 'many' is not a whole number"),
        ("vllm --rows 16 --graphs prompts=3", "vLLM has no list of prompts: it takes widths"),
        ("vllm --rows 16 --sizes widths=1,x", "--sizes 'x' is not a whole number"),
        ("vllm --rows 16 --sizes prompts=1", "vLLM takes widths, not prompts"),
        ("vllm --rows 8", "size 12 is needed, above the largest of 8"),
        ("vllm --rows 16 --unseen 2", "a share 2.0 of what was not seen"),
    ],
)
def test_what_cannot_be_is_one_sentence(command, series, words, says):
    code, out, err = command(f"export {words} --workload {series}")
    assert code == 1
    assert out == ""
    assert says in err
    assert "fault of ours" not in err


def test_a_series_that_is_none_names_the_line(command, tmp_path):
    path = tmp_path / "running.csv"
    for text, says in (
        ("running\n1\nmany\n", "line 3: running 'many' is not a whole number"),
        ("running\n1\n2.5\n", "line 3: running '2.5' is not a whole number of 0 or more"),
        ("running,count\n1,1\n2,-1\n", "line 3: count '-1' is not a number of 0 or more"),
        ("running\n0\n", "no row has a request running"),
    ):
        path.write_text(text)
        code, _, err = command(f"export vllm --workload {path} --rows 16")
        assert code == 1
        assert says in err
