"""The commands that only calculate, run as a user runs them."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from typer.main import get_command

from spyre_bench.cli import main
from spyre_bench.cost.bucket_cost import price
from spyre_bench.cost.card import SpyreCost
from spyre_bench.cost.card_parameters import SpyreCard
from spyre_bench.cost.source import load_cost
from spyre_bench.cost.table import write_cost_table
from spyre_bench.metrics.vllm_json import bench_result
from spyre_bench.model_sizes import preset
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import Bucket, BucketSet
from spyre_bench.simulate.scenario import CONTINUOUS, ENGINE, Scenario
from spyre_bench.simulate.static import simulate
from spyre_bench.workload.source import WORKLOADS, load_workload
from spyre_bench.workload.workload import Workload
from tests.cost.test_cost import machine
from tests.workload.test_server_log import SCRAPE

CHECKOUT = Path(__file__).parent.parent.parent
TWO = ("--bucket", "8,64,32", "--bucket", "2,1024,512")


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `spyre-bench` with these words."""

    def run(*words) -> Done:
        monkeypatch.setattr(sys, "argv", ["spyre-bench", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return Done(ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def table(tmp_path) -> Path:
    """The closed form at the corners of B 1 to 8, P 64 to 2048, N 2 to 1024; ten seconds of compile
    each."""
    corners = [f"{b},{p},{n}" for b in (1, 8) for p in (64, 2048) for n in (2, 1024)]
    write_cost_table(tmp_path / "cost.csv", machine(*corners))
    return tmp_path / "cost.csv"


@pytest.fixture
def trace(tmp_path) -> Path:
    """Short and long prompts in turn, one request a second; one that no bucket takes."""
    path = tmp_path / "trace.csv"
    lines = [f"{second},{800 if second % 2 else 50},{20 + second % 7}" for second in range(60)]
    lines[30] = "30,1500,5"
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]) + "\n")
    return path


# --- simulate -------------------------------------------------------------------------------------


def test_the_result_is_that_of_the_simulator_in_the_names_of_vllm(command, table, trace, tmp_path):
    done = command(
        "simulate",
        "--workload",
        trace,
        *TWO,
        "--cost",
        table,
        "--policy",
        "skip",
        "--seed",
        3,
        "--max-wait-s",
        0.5,
        "--out",
        tmp_path / "result.json",
    )
    assert done.code == 0
    result = json.loads((tmp_path / "result.json").read_text())
    costs = price(BucketSet.parse(["8,64,32", "2,1024,512"]), load_cost(table))
    run = simulate(Workload.read(trace), costs, Policy("skip", max_wait_s=0.5))
    expected = bench_result(run, model="x")
    assert {name: result[name] for name in expected if name != "date"} == {
        name: value for name, value in expected.items() if name != "date"
    }
    assert result["spyre_seed"] == 3
    assert {"completed", "request_throughput", "p99_ttft_ms", "mean_e2el_ms"} <= set(result)
    assert result["spyre_rejected"] == {
        "prompt_too_long": 1,
        "max_tokens_too_large": 0,
        "no_bucket_takes_both": 0,
    }
    assert result["spyre_batches"] == len(run.passes.first_of_batch)
    waste = result["spyre_waste"]
    assert sum(waste.values()) == 2 * waste["computed"], "useful and wastes are all of it"
    assert result["spyre_fill"] == waste["useful"] / waste["computed"]


def test_people_read_latency_waste_throughput_and_what_is_wrong(command, table, trace):
    done = command("simulate", "--workload", trace, *TWO, "--cost", table)
    assert done.code == 0
    for words in (
        "TTFT",
        "decode tail",
        "59 of 60 requests served",
        "output tokens/s",
        "times the shape bound",
        "1 of 60 requests fit no bucket and are rejected",
    ):
        assert words in done.out
    assert max(map(len, done.out.splitlines()[1:18])) <= 80, "tables fit where there is no terminal"


def test_refusals_come_first_and_nobody_served_is_a_failure(command, table, tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("prompt_tokens,output_tokens\n10,5\n5000,5\n")
    run = ("simulate", "--workload", path, "--bucket", "8,64,32", "--cost", table)
    done = command(*run)
    assert done.code == 0
    assert done.out.startswith("REFUSED: 1 of 2 requests (1 prompt too long); figures are of")
    path.write_text("prompt_tokens,output_tokens\n5000,5\n")
    done = command(*run)
    assert done.code == 1
    assert "nobody was served" in done.out
    assert "P5 to P95" not in done.out
    assert re.search(r"TTFT +- +- +- +-", done.out)
    assert command(*run, "--json").code == 1


def test_workloads_are_listed_and_a_file_is_explained_and_saved(command, tmp_path):
    listed = command("workloads").out
    assert all(name in listed for name in WORKLOADS)
    path = tmp_path / "log.csv"
    path.write_text("prompt;completion\n374;44\n396;109\n")
    done = command("workloads", path, "--out", tmp_path / "trace.csv")
    assert done.code == 0
    assert "lengths from prompt, completion" in done.out
    assert re.search(r"prompt +374 +374 +396 +396 +396", done.out)
    assert Workload.read(tmp_path / "trace.csv").output_tokens.tolist() == [44, 109]


def test_a_trace_is_tuned_and_its_file_is_what_simulate_takes(command, table, trace, tmp_path):
    shapes = tmp_path / "shapes.json"
    words = ("tune", trace, "--bucket", "8,2048,1024", "-k", 2)
    done = command(*words, "--replications", 20, "--out", shapes)
    assert done.code == 0, done.err
    assert re.search(r"^change: device seconds fall by \d", done.out, re.MULTILINE)
    told = json.loads(shapes.read_text())
    assert told["tuned"]["log"] == str(trace)
    assert len(told["tuned"]["log_sha256"]) == 64
    again = command("simulate", "--workload", trace, "--bucket", f"@{shapes}")
    assert again.code == 0
    point = command(*words, "--cost", table)
    assert "but the costs have no spread to say how sure that is" in point.out
    assert command(*words, "--json", "--replications", 0).code == 0


def test_without_todays_buckets_there_is_advice_and_no_saving(command, table, trace):
    done = command("tune", trace, "--cost", table)
    assert done.code == 0
    assert "no buckets of today to compare with" in done.out
    assert "saving" not in done.out


def test_a_log_of_lines_needs_lengths_and_then_serves(command, table, tmp_path):
    path = tmp_path / "server.log"
    line = (
        "INFO 11-26 13:0{}:10 [loggers.py:271] Engine 000: Avg prompt throughput: 900.0 tokens/s, "
        "Avg generation throughput: 90.0 tokens/s, Running: 3 reqs, Waiting: 0 reqs\n"
    )
    path.write_text("".join(line.format(minute) for minute in range(9)))
    done = command("tune", path, "--cost", table)
    assert done.code == 1
    assert "say --lengths" in done.err
    done = command("tune", path, "--cost", table, "--lengths", "azure_conv", "--extrapolate")
    assert done.code == 0, done.err
    assert "9 lines of a vLLM log" in done.err


def test_what_a_log_or_a_scrape_is_told_beside_it_holds_or_is_refused(
    command, table, trace, tmp_path
):
    scrape = tmp_path / "metrics.txt"
    scrape.write_text(SCRAPE + "process_start_time_seconds 1.7e9\n")
    os.utime(scrape, (1.7e9 + 600, 1.7e9 + 600))
    words = ("tune", scrape, "--cost", table, "--extrapolate")
    done = command(*words, "--requests", 60, "--arrivals", "constant:2")
    assert done.code == 0, done.err
    assert "60 requests in 30 s, 2/s" in done.err
    assert "those from 300 s on" in command(*words, "--from", 300).err
    refused = command(*words, "--time-unit", "ms")
    assert (refused.code, "leave --time-unit out" in refused.err) == (1, True)
    for log in (scrape, trace):
        refused = command("tune", log, "--cost", table, "--lengths", "azure_conv")
        assert (refused.code, "leave --lengths out" in refused.err) == (1, True)


@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_every_command_that_calculates_draws_its_result(command, table, trace, tmp_path, name):
    pytest.importorskip("matplotlib")
    picture = tmp_path / name
    asked = ("--cost", table, "--plot", picture)
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        f"workload: {trace}\nbuckets: ['8,64,32 2,1024,512']\npolicy: [skip, fcfs]\n"
        f"max_wait_s: [0, 1]\ncost: {table}\n"
    )
    for words in (
        ("simulate", "--workload", trace, *TWO, *asked),
        ("buckets", "--workload", trace, *asked),
        ("sweep", grid, "--out", tmp_path / "sweep.csv", "--jobs", 1, "--plot", picture),
    ):
        done = command(*words)
        assert done.code == 0, done.err
        assert picture.stat().st_size > 5000
        picture.unlink()


def test_what_is_no_picture_is_refused_before_anything_is_calculated(command, trace):
    done = command("buckets", "--workload", trace, "--plot", "a.txt")
    assert done.code == 1
    assert "is no picture: name a file in .png, .svg, .pdf" in done.err


@pytest.mark.parametrize(
    ("absent", "extra", "words"),
    [
        ("torch", "engine", "measure --bucket 1,64,2 --out cost.csv"),
        ("torch", "engine", f"pairs {CHECKOUT} {CHECKOUT} --bucket 1,64,2"),
        ("filelock", "engine", "model granite-3.3-8b"),
        ("filelock", "engine", "model smollm2"),
        ("nbformat", "notebooks", "run a.ipynb"),
        ("nbformat", "notebooks", "new mine"),
        ("jinja2", "notebooks", "app"),
        ("nbformat", "notebooks", "report ."),
        ("matplotlib", "notebooks", "buckets --workload azure_conv --plot a.png"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_what_installs_it(
    absent, extra, words, tmp_path
):
    script = f"""
import sys

class Absent:
    def find_spec(name, *_):
        if name == {absent!r}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent)
from spyre_bench.cli.main import main
sys.argv = ['spyre-bench', *{words.split()}]
main()
"""
    # a process of its own: modules taken out of this one come back as others
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"SPYRE_BENCH_CACHE": str(tmp_path)},  # nothing is unpacked there
    )
    assert done.returncode == 1
    assert f"needs the package {absent}: run make setup" in done.stderr
    assert f"'spyre-bench[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_an_option_too(command):
    assert command("--version").out == command("version").out


def test_continuous_batching_is_simulated_on_shapes_and_says_what_ran_in_each(command, trace):
    words = ("--batching", "continuous", "--prefill-shape", "64,512", "--decode-shape", "4,512")
    code, out, _ = command("simulate", "--workload", trace, *words)
    assert code == 0
    assert "× prefill 64,512 and" in out
    assert "of the seconds paid" in out
    code, out, _ = command("simulate", "--workload", trace, *words, "--blocks", "9", "--json")
    result = json.loads(out)
    assert result["spyre_batching"] == "continuous"
    assert result["spyre_blocks"] == 9
    code, _, err = command("simulate", "--workload", trace)
    assert code == 1
    assert "no bucket given: write, for example, --bucket 4,64,32, or --batching continuous" in err


def test_continuous_batching_on_a_card_has_an_interval_around_its_point(command, trace):
    words = ("--batching", "continuous", "--prefill-shape", "64,512", "--decode-shape", "4,512")
    card = ("simulate", "--workload", trace, *words, "--cost", "card:granite-3.3-8b", "--json")
    found = json.loads(command(*card).out)
    low, high = found["spyre_interval"]["p5_to_p95"]["median_e2el_ms"]
    assert low < found["median_e2el_ms"] < high
    assert json.loads(command(*card).out)["spyre_interval"] == found["spyre_interval"]


def test_json_is_all_that_is_printed_where_it_is_asked_for(command, table, trace):
    done = command("simulate", "--workload", trace, *TWO, "--cost", table, "--json")
    assert json.loads(done.out)["completed"] == 59
    assert done.err == ""


def test_arrays_of_all_requests_come_with_detailed_only(command, table, trace):
    plain = ("simulate", "--workload", trace, *TWO, "--cost", table, "--json")
    brief, detailed = (json.loads(command(*plain, *more).out) for more in ((), ("--detailed",)))
    assert not any(isinstance(value, list) and len(value) == 60 for value in brief.values())
    assert len(detailed["ttfts"]) == len(detailed["itls"]) == len(detailed["start_times"]) == 60
    assert {name: detailed[name] for name in brief if name != "date"} == {
        name: value for name, value in brief.items() if name != "date"
    }


def test_the_same_seed_has_the_same_result_and_another_one_another(command, table):
    def result(seed):
        done = command(
            "simulate",
            "--workload",
            "azure_conv",
            "--requests",
            200,
            *TWO,
            "--cost",
            table,
            "--seed",
            seed,
            "--json",
        )
        return {name: value for name, value in json.loads(done.out).items() if name != "date"}

    assert result(7) == result(7)
    assert result(7)["duration"] != result(8)["duration"]


def test_a_named_workload_is_drawn_as_told(command, table):
    done = command(
        "simulate",
        "--workload",
        "azure_conv",
        "--requests",
        300,
        "--arrivals",
        "constant:4",
        "--max-tokens",
        "fixed:100",
        "--length-scale",
        0.5,
        "--rate-scale",
        2,
        "--seed",
        5,
        *TWO,
        "--cost",
        table,
        "--json",
        "--detailed",
    )
    some = load_workload(
        "azure_conv",
        requests=300,
        rng=np.random.default_rng(5),
        arrivals="constant:4",
        max_tokens="fixed:100",
    ).scaled(lengths=0.5, rate=2)
    result = json.loads(done.out)
    assert result["request_rate"] == 8
    assert result["input_lens"] == some.prompt_tokens.tolist()
    assert result["start_times"] == some.arrival_s.tolist()


def test_replicas_and_warmup_are_of_the_deployment(command, table, trace):
    plain = ("simulate", "--workload", trace, *TWO, "--cost", table, "--json")
    one = json.loads(command(*plain).out)
    two = json.loads(command(*plain, "--replicas", 2, "--router", "least_loaded").out)
    assert two["spyre_replicas"] == 2
    assert two["mean_ttft_ms"] < one["mean_ttft_ms"]
    cold = json.loads(command(*plain, "--warmup").out)
    assert cold["spyre_ready_s"] == one["spyre_warmup_s"] > 20
    assert cold["mean_ttft_ms"] > one["mean_ttft_ms"]


def test_goodput_counts_the_requests_within_every_limit(command, table, trace):
    plain = ("simulate", "--workload", trace, *TWO, "--cost", table, "--json", "--detailed")
    result = json.loads(command(*plain, "--goodput", "ttft:2000", "--goodput", "e2el:4000").out)
    good = sum(
        ttft_s <= 2 and e2el_s <= 4 and not error
        for ttft_s, e2el_s, error in zip(
            result["ttfts"], result["latencies"], result["errors"], strict=True
        )
    )
    assert 0 < good < 59
    assert result["request_goodput"] == good / result["duration"]


def test_what_is_beyond_the_table_is_marked_where_extrapolation_is_allowed(command, table, trace):
    words = ("simulate", "--workload", trace, "--bucket", "16,2048,32", "--cost", table, "--json")
    result = json.loads(command(*words, "--extrapolate").out)
    assert result["spyre_extrapolated"] == ["16,2048,32"]
    assert result["completed"] == 60


def test_an_age_guard_that_never_acts_is_written_as_json_can(command, table, trace):
    done = command(
        "simulate",
        "--workload",
        trace,
        *TWO,
        "--cost",
        table,
        "--policy",
        "length_aware",
        "--max-age-s",
        "inf",
        "--json",
    )
    assert json.loads(done.out)["spyre_policy"]["max_age_s"] == "inf"


def test_without_a_cost_table_the_shipped_one_is_used(command, trace):
    done = command("simulate", "--workload", trace, "--bucket", "2,1024,32", "--json")
    result = json.loads(done.out)
    assert result["spyre_busy_s"] > 0
    assert result["model_id"] == load_cost().rows[0].model


def test_the_folder_of_the_result_is_made_and_nothing_else_is_left_in_it(
    command, table, trace, tmp_path
):
    out = tmp_path / "some" / "where" / "result.json"
    assert command("simulate", "--workload", trace, *TWO, "--cost", table, "--out", out).code == 0
    assert [path.name for path in out.parent.iterdir()] == ["result.json"]


def options_of(name: str) -> dict[str, str]:
    """The options of a command with their help texts."""
    command = get_command(main.app).commands[name]
    return {flag: option.help for option in command.params for flag in option.opts}


def test_every_setting_of_a_scenario_is_an_option_with_its_own_help_text():
    simulated, chosen = options_of("simulate"), options_of("buckets")
    for it in fields(Scenario):
        flag = it.metadata.get("flag", f"--{it.name.replace('_', '-')}")
        assert simulated[flag] == it.metadata["help"]
        of_engine = it.metadata["part"] in (ENGINE, CONTINUOUS)
        assert (flag in chosen) != of_engine, "what it would not use"


CARD = "card:granite-3.3-8b,tp=4,dtype=fp8"


def on_card(command, trace, end: str, *words):
    given = ("simulate", "--workload", trace, "--bucket", "2,2048,64", "--rate-scale", 0.05)
    return command(*given, "--cost", f"{CARD},end={end}", *words)


def test_every_figure_has_an_interval_that_the_seed_repeats_and_a_point_without_one_says_so(
    command, trace
):
    words = ("simulate", "--workload", trace, *TWO, "--replications", 20)
    found = json.loads(command(*words, "--json").out)
    low, high = found["spyre_interval"]["p5_to_p95"]["median_e2el_ms"]
    assert low < found["median_e2el_ms"] < high
    assert json.loads(command(*words, "--json").out)["spyre_interval"] == found["spyre_interval"]
    assert "P5 to P95 of 20 replications: requests/s" in command(*words).out
    of_card = ("--cost", "card:granite-3.3-8b,end=slow")
    assert "points without an interval" in command(*words, *of_card).out
    assert "interval" not in command(*words[:-1], 0).out


def test_a_card_is_simulated_at_the_end_asked_for_and_shown_with_its_range(command, trace):
    slow, value, fast = (
        json.loads(on_card(command, trace, end, "--json").out) for end in ("slow", "value", "fast")
    )
    cost = SpyreCost(preset("granite-3.3-8b"), 4, "fp8").at("slow", Bucket(2, 2048, 64))
    run = bench_result(simulate(Workload.read(trace).scaled(rate=0.05), [cost]))
    assert slow["request_throughput"] == run["request_throughput"]
    assert slow["median_ttft_ms"] > value["median_ttft_ms"] > fast["median_ttft_ms"]
    for name, ends in value["spyre_modelled"]["slow_to_fast"].items():
        assert ends == [slow[name], fast[name]], "the same range whatever the end"
    assert value["model_id"] == "granite-3.3-8b"


def test_people_are_told_that_a_card_is_modelled_and_how_far_it_could_be_off(command, trace):
    done = on_card(command, trace, "slow")
    (line,) = [line for line in done.out.splitlines() if "modelled, not measured" in line]
    assert "granite-3.3-8b in fp8 on 4 cards, at the pessimistic end" in line
    found = json.loads(on_card(command, trace, "slow", "--json").out)["spyre_modelled"]
    slow, fast = (ms / 1e3 for ms in found["slow_to_fast"]["median_tpot_ms"])
    assert f"of median TPOT {slow:.3g} to {fast:.3g}" in line
    table = command("simulate", "--workload", trace, *TWO)
    assert "modelled" not in table.out


def test_buckets_are_chosen_for_a_card_with_the_range_of_their_seconds(command, trace):
    words = ("buckets", "--workload", trace, "-k", 2, "--cost", CARD)
    found = json.loads(command(*words, "--json").out)
    ends = found["modelled"]["slow_to_fast"]
    each = SpyreCard().compile_s
    assert ends["compile_s"] == [end * len(found["buckets"]) for end in (each.slow, each.fast)]
    assert ends["shape_bound_s"][0] > ends["shape_bound_s"][1] > 0
    assert "modelled, not measured" in command(*words).out


def test_shapes_are_chosen_for_a_card_with_the_range_of_their_seconds(command, trace):
    words = ("shapes", "--workload", trace, "-k", 2, "--rows", 2, "--cost", CARD)
    found = json.loads(command(*words, "--json").out)
    ends = found["modelled"]["slow_to_fast"]
    each = SpyreCard().compile_s
    chosen = len(found["prefill_shapes"]) + len(found["decode_shapes"])
    halves = [end * chosen / 2 for end in (each.slow, each.fast)]  # a bucket compiles two passes
    assert ends["compile_s"] == halves
    (nominal_s,) = [row["fitted_busy_s"] for row in found["contenders"] if row["advised"]]
    assert ends["busy_s"][0] > nominal_s > ends["busy_s"][1] > 0
    assert "prompt_tokens" in found["read_as"]
    done = command(*words)
    assert "modelled, not measured" in done.out
    assert found["read_as"] in done.err


def test_a_grid_says_how_many_of_its_rows_are_modelled(command, trace, table, tmp_path):
    grid = {"workload": str(trace), "buckets": "2,1024,64"}
    grid["cost"] = [str(table), f"{CARD},end=pessimistic", f"{CARD},end=fast", "card:gpt"]
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    done = command("sweep", tmp_path / "grid.yaml", "--out", tmp_path / "out.csv", "--jobs", 1)
    assert "4 rows" in done.err
    assert (
        "3 of them modelled, not measured: show both ends, 1 of them with an error, such"
        in done.err
    )
    rows = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert rows["extrapolated"].tolist() == ["0", "1", "1", ""]
    assert rows["busy_s"].astype(str).str.len().gt(0).tolist() == [True, True, True, False]
    assert "'gpt' is no preset" in rows["error"].iloc[3]
    assert float(rows["busy_s"][1]) > float(rows["busy_s"][2])


def test_a_card_that_is_not_known_is_one_line_with_those_that_are(command, trace):
    given = ("simulate", "--workload", trace, "--bucket", "2,2048,64", "--cost")
    done = command(*given, "card:gpt")
    assert done.code == 1
    assert "model 'gpt' is no preset: use one of granite-3.3-8b, " in done.err
    assert "write key=value with one of tp, dtype, end" in command(*given, f"{CARD},x=1").err


# --- buckets --------------------------------------------------------------------------------------

AZURE = ("buckets", "--workload", "azure_conv", "--requests", 600)


def pasted(out: str) -> BucketSet:
    """The buckets of the line that is meant for the command line of `vllm serve`."""
    line = next(line for line in out.splitlines() if line.startswith("--additional-config"))
    option, value = shlex.split(line)
    assert option == "--additional-config"
    return BucketSet.parse(json.loads(value)["spyre"]["buckets"])


def test_the_advice_shows_bound_gap_held_out_result_and_baselines(command, table):
    done = command(*AZURE, "--cost", table, "-k", 5, "--warmup-budget", 600)
    assert done.code == 0
    for words in (
        "bound",
        "held out",
        "optimum",
        "one shape",
        "powers of two",
        "exponential",
        "percentiles",
        "<- advised",
        "a gap of 0.0",
        "Certificate: even with full batches",
        "of 600 requests are beyond the cost table",
    ):
        assert words in done.out
    rows = [line for line in done.out.splitlines() if line.startswith(" ")]
    assert max(map(len, rows)) <= 80
    assert not any("…" in line for line in rows), "nothing is cut off where there is no terminal"


def test_the_line_to_paste_holds_the_advised_buckets(command, table):
    people = pasted(command(*AZURE, "--cost", table, "-k", 3).out)
    machines = json.loads(command(*AZURE, "--cost", table, "-k", 3, "--json").out)
    assert 1 <= len(people) <= 3
    assert people == BucketSet.parse(machines["buckets"])
    assert people == BucketSet.parse(machines["additional_config"]["spyre"]["buckets"])


def test_what_is_pasted_serves_by_the_policy_that_was_replayed(command, table):
    words = (*AZURE, "--cost", table, "-k", 2, "--policy", "skip", "--json")
    setting = json.loads(command(*words).out)["additional_config"]["spyre"]
    assert setting["policy"] == "skip"
    assert f"'{json.dumps({'spyre': setting})}'" in command(*words[:-1]).out


def test_the_json_has_the_whole_comparison(command, table):
    found = json.loads(command(*AZURE, "--cost", table, "-k", 3, "--json").out)
    frame = pd.DataFrame(found["contenders"])
    assert frame["advised"].sum() == 1
    assert " ".join(found["buckets"]) == frame.loc[frame["advised"], "buckets"].item()
    assert {"ours", "baseline"} == set(frame["kind"])
    assert found["requests_fitted"] + found["requests_held_out"] == (
        600 - found["requests_beyond_the_cost_table"]
    )
    certificate = found["certificate"]
    assert certificate["proved_bound_s"] <= certificate["shape_bound_s"]
    assert certificate["gap"] <= 1e-3
    assert (frame["fitted_busy_s"] >= certificate["proved_bound_s"]).all()


def test_what_the_advice_says_simulating_it_confirms(command, table):
    """The held-out half as a file of its own, through `simulate`."""
    words = ("--cost", table, "--json")
    found = json.loads(command(*AZURE, "-k", 3, *words).out)
    rng = np.random.default_rng(0)
    some = load_workload("azure_conv", requests=600, rng=rng)
    kept = some.take((some.prompt_tokens <= 2048) & (some.max_tokens <= 1024))
    path = table.parent / "held_out.csv"
    kept.halves()[1].save(path)
    options = [word for bucket in found["buckets"] for word in ("--bucket", bucket)]
    result = json.loads(command("simulate", "--workload", path, *options, *words).out)
    advised = next(row for row in found["contenders"] if row["advised"])
    assert result["spyre_busy_s"] == advised["held_out_busy_s"]
    assert result["spyre_fill"] == advised["held_out_fill"]


def test_a_warmup_budget_is_kept(command, table):
    found = json.loads(
        command(*AZURE, "--cost", table, "-k", 5, "--warmup-budget", 25, "--json").out
    )
    assert len(found["buckets"]) == 2, "ten seconds each"
    ours = [row for row in found["contenders"] if row["kind"] == "ours"]
    assert all(row["compile_s"] <= 25 for row in ours)


def test_memory_and_batch_sizes_are_kept(command, table):
    cost = load_cost(table)
    cap = cost.of(Bucket(4, 2048, 1024)).memory_bytes
    words = (*AZURE, "--cost", table, "-k", 2, "--json")
    found = json.loads(command(*words, "--memory-gib", cap / 2**30).out)
    assert all(cost.of(Bucket.parse(text)).memory_bytes <= cap for text in found["buckets"])
    found = json.loads(command(*words, "--batch-size", 1).out)
    assert {Bucket.parse(text).batch_size for text in found["buckets"]} == {1}


def test_goodput_may_be_the_objective(command, table):
    words = (*AZURE, "--cost", table, "-k", 2, "--rate-scale", 0.002, "--json")
    limits = ("--objective", "goodput", "--goodput", "e2el:60000")
    frame = pd.DataFrame(json.loads(command(*words, *limits).out)["contenders"])
    ours = frame[frame["kind"] == "ours"]
    best = ours.loc[ours["advised"], "fitted_goodput_rps"].item()
    assert best == ours["fitted_goodput_rps"].max() > 0
    assert best > ours["fitted_goodput_rps"].min()
    done = command(*words[:-1], *limits)
    (line,) = [line for line in done.out.splitlines() if line.startswith("Verdict")]
    assert f"serves {best:.3g} requests/s of the first half within the limits" in line
    assert "goodput  held out" in done.out
    assert f"{best:.3g}" in done.out.split("k: buckets")[0]
    assert "goodput" not in command(*words[:-1]).out


# --- sweep ----------------------------------------------------------------------------------------


@pytest.fixture
def grid(tmp_path, table, trace) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(
        f"workload: {trace}\ncost: {table}\nbuckets: ['2,1024,512', '8,64,32 2,1024,512']\n"
        f"policy: [best_fit, fcfs]\n"
    )
    return path


def test_a_sweep_writes_one_table_shows_its_progress_and_goes_on(command, grid, tmp_path):
    out = tmp_path / "new" / "sweep.csv"
    done = command("sweep", grid, "--out", out, "--jobs", 1)
    assert done.code == 0
    assert "4/4" in done.err
    assert f"4 rows in {out}" in done.err
    frame = pd.read_csv(out)
    assert frame["policy"].tolist() == ["best_fit", "fcfs"] * 2
    assert (frame["served"] + frame["rejected"] == 60).all()
    text = out.read_bytes()
    out.write_bytes(text[:-20])
    assert "1/1" in command("sweep", grid, "--out", out, "--jobs", 1).err
    assert out.read_bytes() == text


def test_a_sweep_counts_the_points_that_could_not_run(command, grid, tmp_path):
    grid.write_text(grid.read_text().replace("'2,1024,512'", "'9,1024,512'"))
    done = command("sweep", grid, "--out", tmp_path / "sweep.csv", "--jobs", 1)
    assert done.code == 0
    assert "4 rows in" in done.err
    assert "2 of them with an error" in done.err


def test_a_sweep_that_cannot_be_drawn_says_why_it_cannot(command, grid, tmp_path):
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / "sweep.csv", tmp_path / "a.png"
    words = ("sweep", grid, "--out", out, "--jobs", 1, "--plot", picture)
    text = grid.read_text()
    grid.write_text(text.replace("2,1024,512", "9,1024,512"))
    failed = command(*words)
    assert (failed.code, picture.exists()) == (1, False)
    assert f"4 rows in {out}, 4 of them with an error, such as: bucket 9,1024,512" in failed.err
    assert "varies" not in failed.err
    grid.write_text(text.replace("'2,1024,512', ", "").replace("best_fit, ", ""))
    out.unlink()
    alone = command(*words)
    assert (alone.code, out.exists()) == (1, False), "before anything runs"
    assert "no setting of the grid varies, so there is no axis" in alone.err


# --- options without effect -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ("tune passes.jsonl --lengths azure_conv", "--lengths"),
        ("tune passes.jsonl --bucket 1,64,8", "--bucket"),
        ("tune trace.csv --lengths azure_conv", "--lengths"),
        ("export vllm SERIES --sizes widths=1,2,4,8 --graphs 2", "--graphs"),
        ("export vllm SERIES --sizes widths=1,8 --warmup-budget 5 --graph-s 9", "--warmup-budget"),
        ("export vllm SERIES --sizes widths=1,2,4,8 --unseen 0", "--unseen"),
        ("export vllm SERIES --from 3600", "--from"),
        ("export vllm SERIES --requests 10", "--requests"),
        ("export vllm SERIES --length-scale 0.5", "--length-scale"),
        ("export vllm SERIES --step-ms 30", "--step-ms"),
        ("buckets --workload trace.csv --cost cost.csv --goodput ttft:2000", "--goodput"),
        ("buckets --workload azure_conv --columns arrival=none", "--columns"),
        ("shapes --workload azure_conv --time-unit ms", "--time-unit"),
        ("simulate --workload azure_conv --bucket 8,64,32 --separator ;", "--separator"),
        ("simulate --workload trace.csv --bucket 8,64,32 --detailed", "--detailed"),
        ("workloads --out requests.csv", "--out"),
        ("pairs true true --bucket 1,64,8", "--bucket"),
    ],
)
def test_an_option_that_would_change_nothing_is_named_and_refused(
    command, table, trace, tmp_path, monkeypatch, words, flag
):
    monkeypatch.chdir(tmp_path)
    Path("passes.jsonl").write_text('{"kind": "warmup"}\n')
    Path("running.csv").write_text("running\n3\n7\n")
    done = command(*words.replace("SERIES", "--workload running.csv --rows 8").split())
    assert done.code == 1
    assert done.out == ""
    assert re.search(rf"leave {flag} out|\({flag}\) decide nothing", done.err)
    assert not Path("requests.csv").exists()


def test_tune_goes_by_device_seconds_and_offers_no_slo():
    assert "--policy" in options_of("tune")
    assert "--goodput" not in options_of("tune")


# --- what goes wrong ------------------------------------------------------------------------------

SIMULATE = ("simulate", "--workload", "{trace}", "--cost", "{table}", *TWO)
BUCKETS = ("buckets", "--workload", "{trace}", "--cost", "{table}", "-k", "2")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((*SIMULATE, "--bucket", "4,65,32"), "prompt_length 65 is not a positive multiple of 64"),
        ((*SIMULATE, "--bucket", "4,64"), "bucket '4,64' is not three whole numbers"),
        ((*SIMULATE, "--bucket", "9,64,32"), "9,64,32 is outside of the cost table, which spans B"),
        ((*SIMULATE, "--workload", "azure_cnv"), "'azure_cnv' is unknown, .* mean azure_conv"),
        ((*SIMULATE, "--workload", "/dev/null"), "/dev/null is a folder or a pipe .* write it to"),
        ((*SIMULATE, "--workload", "{empty}"), "empty.csv is empty: it needs a line of column"),
        ((*SIMULATE, "--cost", "{empty}"), "empty.csv is empty: it needs a line of column"),
        ((*SIMULATE, "--cost", "nowhere.csv"), "nowhere.csv: No such file"),
        ((*SIMULATE, "--policy", "best"), "'best' is not known: use one of best_fit, skip, fcfs"),
        ((*SIMULATE, "--goodput", "ttft"), "'ttft' is not a metric and milliseconds: .*ttft:2000"),
        ((*SIMULATE, "--goodput", "itl:9"), "no limit on 'itl': use ttft, tpot or e2el"),
        ((*SIMULATE, "--goodput", "ttft:nan"), "ttft:nan is not above 0 milliseconds"),
        ((*SIMULATE, "--goodput", "ttft:-1"), "ttft:-1.0 is not above 0 milliseconds"),
        ((*SIMULATE, "--max-wait-s", "inf"), "max_wait_s is infinite"),
        ((*SIMULATE, "--max-wait-s", "-1"), "max_wait_s -1.0 is not a number of seconds"),
        ((*SIMULATE, "--replicas", "0"), "replicas 0 is below 1"),
        ((*SIMULATE, "--router", "random"), "router 'random' is not known"),
        ((*SIMULATE, "--requests", "61"), "has 60 requests: 61 cannot be taken"),
        ((*SIMULATE, "--arrivals", "poison:2"), "did you mean poisson"),
        ((*SIMULATE, "--max-tokens", "fixed"), "fixed:256"),
        ((*SIMULATE, "--length-scale", "0"), "scaled lengths 0.0 is not a positive number"),
        ((*BUCKETS, "--warmup-budget", "5"), "no choice of 2 buckets within a warmup budget of 5"),
        ((*BUCKETS, "-k", "0"), "k 0 is below 1"),
        ((*BUCKETS, "--memory-gib", "1e-9"), "memory_bytes 1 is below what the smallest candidate"),
        ((*BUCKETS, "--memory-gib", "inf"), "--memory-gib inf is not above 0 and below"),
        ((*BUCKETS, "--memory-gib", "nan"), "--memory-gib nan is not above 0 and below"),
        ((*SIMULATE, "--out", "{trace}"), "trace.csv is the file of --workload: name another"),
        ((*SIMULATE, "--out", "/dev/null"), "/dev/null is a device or a pipe, and not a file"),
        ((*SIMULATE, "--out", "{trace}/x"), "trace.csv/x cannot be written .*: name a file in"),
        ((*SIMULATE, "--plot", "{trace}/x.svg"), "x.svg cannot be written .*: name a file in"),
        (("tune", "{trace}", "--out", "{trace}"), "trace.csv is the file of LOG: name another"),
        (
            ("simulate", "--workload", "{trace}", "--batching", "continuous"),
            "no prefill shape given: .*256,2048; `spyre-bench shapes` chooses them",
        ),
        (("tune", "{trace}", "-k", "0"), "k 0 is below 1"),
        ((*SIMULATE, "--replicas", "2147483648"), "replicas 2147483648 is above 10,000"),
        ((*SIMULATE, "--client-overhead-ms", "inf"), "client_overhead_s inf is negative or endl"),
        (("sweep", "{grid}", "--out", "{out}", "--jobs", "0"), "jobs 0 are too few"),
        ((*BUCKETS, "--batch-size", "16"), "bucket 16,.* is outside of the cost table"),
        ((*BUCKETS, "--objective", "speed"), "objective 'speed' is not known"),
        ((*BUCKETS, "--objective", "goodput"), "goodput needs an SLO"),
        ((*BUCKETS, "--goodput", "e2e:9"), "no limit on 'e2e'"),
        ((*BUCKETS, "--policy", "lifo"), "policy 'lifo' is not known"),
        ((*BUCKETS, "--length-scale", "100"), "every request is beyond the cost table"),
        ((*BUCKETS, "--requests", "1"), "has 1 request: it cannot be halved"),
        (("sweep", "{trace}", "--out", "{out}"), "write a line for each setting"),
        (("sweep", "nowhere.yaml", "--out", "{out}"), "nowhere.yaml: No such file"),
        (("sweep", "{grid}", "--out", "{trace}"), "trace.csv is not of a sweep"),
        (("sweep", "{grid}", "--out", "{out}", "--backend", "mpi"), "backend 'mpi' is not known"),
        (("sweep", "{grid}", "--out", "{out}", "--scheduler", "a:1"), "is of no use to loky"),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr(
    command, table, trace, grid, tmp_path, words, sentence
):
    (tmp_path / "empty.csv").touch()
    names = {
        "table": table,
        "trace": trace,
        "grid": grid,
        "empty": tmp_path / "empty.csv",
        "out": tmp_path / "out.csv",
    }
    done = command(*(word.format(**names) for word in words))
    assert done.code == 1
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("spyre-bench: ")
    assert re.search(sentence, done.err), done.err


def test_a_limit_that_makes_no_sense_is_refused_before_anything_runs(
    command, table, trace, monkeypatch
):
    monkeypatch.setattr("spyre_bench.simulate.static.simulate", lambda *_, **__: 1 / 0)
    done = command("simulate", "--workload", trace, "--cost", table, *TWO, "--goodput", "itl:9")
    assert "no limit on 'itl'" in done.err


def test_an_error_of_any_kind_is_one_line_and_its_traceback_is_there_for_the_asking(
    command, table, trace, monkeypatch, capsys
):
    monkeypatch.setattr("spyre_bench.simulate.static.simulate", lambda *_, **__: {}["key"])
    words = ("simulate", "--workload", trace, "--cost", table, *TWO)
    done = command(*words)
    assert done.code == 1
    assert done.err == "spyre-bench: KeyError: 'key' (a fault of ours; --debug shows where)\n"
    monkeypatch.setattr(sys, "argv", ["spyre-bench", *map(str, words), "--debug"])
    with pytest.raises(KeyError):
        main.main()


def test_the_installed_command_is_the_same_and_shows_no_traceback(table, trace):
    script = Path(sys.executable).parent / "spyre-bench"
    plain = [script, "simulate", "--workload", trace, "--cost", table, *TWO]
    good = subprocess.run([*plain, "--json"], capture_output=True, text=True)
    assert (good.returncode, json.loads(good.stdout)["completed"]) == (0, 59)
    bad = subprocess.run([*plain, "--policy", "lifo"], capture_output=True, text=True)
    assert bad.returncode == 1
    assert bad.stderr == (
        "spyre-bench: policy 'lifo' is not known: use one of best_fit, skip, fcfs, length_aware\n"
    )
    module = [sys.executable, "-m", "spyre_bench.cli.main", *plain[1:], "--json"]
    same = subprocess.run(module, capture_output=True, text=True)
    assert (same.returncode, json.loads(same.stdout)["completed"]) == (0, 59)


# --- validate -------------------------------------------------------------------------------------


def test_a_result_held_against_itself_with_a_slower_client_shows_the_client(
    command, table, trace, tmp_path
):
    words = ("simulate", "--workload", trace, *TWO, "--cost", table, "--detailed")
    measured, simulated = tmp_path / "measured.json", tmp_path / "simulated.json"
    assert command(*words, "--client-overhead-ms", "50", "--out", measured).code == 0
    assert command(*words, "--out", simulated).code == 0
    done = command("validate", measured, simulated, "--json")
    assert done.code == 0
    rows = {row["quantity"]: row for row in json.loads(done.out)}
    assert rows["requests/s"]["error"] == 0
    slower = rows["E2EL median [s]"]
    assert slower["measured"] == pytest.approx(slower["simulated"] + 0.05)
    assert rows["E2EL of a request, median absolute error"]["error"] > 0
    table_of = command("validate", measured, simulated)
    assert "E2EL P99 [s]" in table_of.out
    assert "nan" not in table_of.out


def test_a_result_without_arrays_says_that_single_requests_were_not_compared(command, tmp_path):
    path = tmp_path / "some.json"
    path.write_text('{"request_throughput": 2.0, "mean_ttft_ms": 3.0}')
    done = command("validate", path, path)
    assert done.code == 0
    assert done.err.count("single requests are not compared") == 2
    assert "mean TTFT" in done.out


def test_a_pass_log_alone_is_asked_whether_the_simulator_decides_as_the_server(command, tmp_path):
    shapes = {"prefill 64,256": 4.0, "decode 2,256": 1.0}
    log: list[dict] = [
        {"kind": "shape_warmup", "shape": shape, "compile_s": 1.0, "full_s": seconds}
        | {"empty_s": seconds, "was_warm": True, "graphs": 1}
        for shape, seconds in shapes.items()
    ]
    log.append({"kind": "step_rules", "blocks": 9, "prefix_cache": True, "rules": {}})
    came = {"request": "a", "arrival_s": 50.0, "seen_s": 50.0, "prompt_tokens": 10}
    came |= {"max_tokens": 3, "prefixes": []}
    for at_s, kind, shape, context in (
        (50.0, "chunk", "prefill 64,256", 10),
        (54.0, "rows", "decode 2,256", 11),
    ):
        log.append(
            {"kind": kind, "shape": shape, "start_s": at_s, "seconds": 0.9, "requests": ["a"]}
            | {"tokens": [context if kind == "chunk" else 1], "again_tokens": 0}
            | {"context_tokens": [context], "context": context, "paused": 0, "waiting": 0}
            | {"free_blocks": 7, "came": [came] * (kind == "chunk"), "gone": [], "named": [[]]}
        )
    path = tmp_path / "passes.jsonl"

    def written() -> Path:
        path.write_text("".join(json.dumps(line) + "\n" for line in log))
        return path

    done = command("validate", written())
    assert (done.code, done.err) == (0, "")
    assert "takes the server's steps in all 2 passes, starts at most 0.0 ms apart" in done.out
    assert json.loads(command("validate", path, "--json").out)["agree"] is True
    log[-1]["context_tokens"] = [12]
    done = command("validate", written())
    assert done.code == 1
    assert "pass 1 of 2 (counted from 0) differs" in done.out
    del log[2]
    assert "does not say what its engine decided by" in command("validate", written()).err


def test_what_cannot_be_held_against_each_other_is_one_sentence(command, trace, tmp_path):
    done = command("validate", trace, trace)
    assert done.code == 1
    assert "trace.csv: not JSON" in done.err
    assert "Traceback" not in done.err


# --- what a trace file is taken for ---------------------------------------------------------------


def test_what_a_file_was_taken_for_is_said_on_stderr(command, table, trace):
    for name, more in (("simulate", TWO), ("buckets", ("-k", 2))):
        done = command(name, "--workload", trace, *more, "--cost", table)
        assert done.err == (
            "trace.csv: our own; arrivals from arrival_s in s; lengths from prompt_tokens, "
            "output_tokens; max_tokens: output; 60 requests in 59 s, 1.02/s\n"
        )


def test_a_column_of_times_under_another_name_is_not_dropped(command, table, trace):
    def p99(*words) -> float:
        done = command("simulate", *TWO, "--cost", table, "--json", "--workload", *words)
        return json.loads(done.out)["p99_ttft_ms"]

    right = p99(trace)
    other = trace.with_name("other.csv")
    other.write_text(trace.read_text().replace("arrival_s", "created_at"))
    refused = command("simulate", *TWO, "--cost", table, "--workload", other)
    assert "created_at may hold times, but nothing says in which unit" in refused.err
    assert p99(other, "--time-unit", "s") == right
    assert p99(other, "--columns", "arrival=created_at", "--time-unit", "s") == right
    assert p99(other, "--columns", "arrival=none") > 2 * right
    other.write_text(other.read_text().replace(",", ";"))
    assert p99(other, "--separator", "semicolon", "--time-unit", "s") == right


def test_a_window_leaves_the_ramp_up_and_the_end_out(command, table, trace):
    done = command("simulate", "--workload", trace, *TWO, "--cost", table, "--from", 10, "--to", 30)
    assert "20 requests in 19 s, 1.05/s; those from 10 s to 30 s" in done.err
    done = command("simulate", "--workload", trace, *TWO, "--cost", table, "--from", 99)
    assert "has no requests from 99.0 s to inf s: it is 59 s long" in done.err


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--warmup-budget", 60), "--warmup-budget.* needs compile_s"),
        (("--memory-gib", 1), "--memory-gib.* needs memory_bytes"),
    ],
)
def test_a_limit_that_a_table_says_nothing_of_does_not_count_as_kept(
    command, trace, tmp_path, option, words
):
    corners = [f"{b},{p},{n}" for b in (1, 8) for p in (64, 2048) for n in (2, 1024)]
    rows = [replace(row, compile_s=0.0, memory_bytes=0) for row in machine(*corners)]
    write_cost_table(tmp_path / "cost.csv", rows)
    plain = ("buckets", "--workload", trace, "-k", 2, "--cost", tmp_path / "cost.csv")
    assert command(*plain).code == 0
    refused = command(*plain, *option)
    assert refused.code == 1
    assert re.search(words, refused.err)


def test_no_number_is_cut_where_the_terminal_is_narrow(command, trace, table, monkeypatch):
    words = ("simulate", "--workload", trace, "--bucket", "8,2048,1024", "--cost", table)
    wide = command(*words).out
    monkeypatch.setenv("COLUMNS", "30")
    assert command(*words).out.split() == wide.split()


def test_an_interruption_leaves_a_sentence(command, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("spyre_bench.cli.workloads._print_shipped", interrupted)
    done = command("workloads")
    assert (done.code, done.out, done.err) == (130, "", "spyre-bench: interrupted\n")
