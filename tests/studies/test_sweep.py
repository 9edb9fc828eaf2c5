"""Grids of simulations: what is a point, what a row says, interruptions, and other backends."""

import json
import os
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from spyre_bench.cost.bucket_cost import price
from spyre_bench.cost.source import load_cost
from spyre_bench.cost.table import write_cost_table
from spyre_bench.files import in_use
from spyre_bench.metrics.summary import summary
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import BucketSet
from spyre_bench.simulate.scenario import Scenario
from spyre_bench.simulate.static import simulate
from spyre_bench.studies import sweep
from spyre_bench.studies.sweep import COLUMNS, points, read_points, run_chunk, run_sweep
from spyre_bench.workload.source import load_workload
from spyre_bench.workload.workload import Workload
from tests.cost.test_cost import CORNERS, machine

SHORT, LONG = "8,64,32", "4,512,256"


@pytest.fixture
def table(tmp_path) -> str:
    write_cost_table(tmp_path / "cost.csv", machine(*CORNERS))
    return str(tmp_path / "cost.csv")


@pytest.fixture
def trace(tmp_path) -> str:
    """Twenty short requests and ten long ones, one a second."""
    path = tmp_path / "trace.csv"
    lines = [f"{second},{40 if second % 3 else 300},{10 + second}" for second in range(30)]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]) + "\n")
    return str(path)


@pytest.fixture
def grid(table, trace) -> list[Scenario]:
    """Twelve points, three of them beyond the cost table: more than one chunk."""
    return points(
        {
            "workload": trace,
            "buckets": [LONG, f"{SHORT} {LONG}", "64,64,32"],
            "policy": ["best_fit", "fcfs"],
            "rate_scale": [0.1, 10],
            "cost": table,
        }
    )


def swept(requests, out, **chosen) -> pd.DataFrame:
    return run_sweep(requests, out, **{"jobs": 1, "progress": False} | chosen)


@pytest.fixture
def runs(monkeypatch) -> list[Scenario]:
    """The points that are simulated while it is watched."""
    seen, run_chunk = [], sweep.run_chunk

    def watched(chunk):
        seen.extend(chunk)
        return run_chunk(chunk)

    monkeypatch.setattr(sweep, "run_chunk", watched)
    return seen


# --- the grid -------------------------------------------------------------------------------------


def test_every_combination_is_a_point_and_the_last_setting_changes_fastest():
    found = points({"workload": ["a", "b"], "buckets": SHORT, "policy": ["skip", "fcfs"]})
    assert found == [
        Scenario("a", SHORT, policy="skip"),
        Scenario("a", SHORT, policy="fcfs"),
        Scenario("b", SHORT, policy="skip"),
        Scenario("b", SHORT, policy="fcfs"),
    ]


def test_a_grid_is_read_from_yaml_with_buckets_in_any_form(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        """
        workload: azure_conv
        buckets:
          - 8,64,32
          - 4,512,256 8,64,32
          - [[8, 64, 32], [4, 512, 256]]
        arrivals: [poisson:2.5, "gamma:2.5,0.5"]
        rate_scale: 2
        extrapolate: true
        """
    )
    found = read_points(path)
    assert [point.buckets for point in found[::2]] == [SHORT, f"{LONG} {SHORT}", f"{LONG} {SHORT}"]
    assert [point.arrivals for point in found[:2]] == ["poisson:2.5", "gamma:2.5,0.5"]
    assert (found[0].rate_scale, found[0].extrapolate) == (2.0, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("workload: a\nbuckets: 8,64,32\nrat: 2", "setting 'rat' is not known: there are workload"),
        ("workload: a\nbuckets: 8,64,32\n1: 2\nrat: 2", "setting 1 is not known"),
        ("buckets: 8,64,32", "says nothing of workload"),
        ("workload: a\nbuckets: 8,65,32", "prompt_length 65 .* use 128"),
        ("workload: a\nbuckets: 8", "setting buckets: 8 is not a set of buckets"),
        ("workload: a\nbuckets: 8,64,32\nseed: one", "setting seed: 'one' is not of type int"),
        ("workload: a\nbuckets: 8,64,32\nseed: true", "setting seed: True is not of type int"),
        ("workload: a\nbuckets: 8,64,32\nseed: []", "the grid has no point"),
        (
            "workload: a\nbuckets: 8,64,32\ndecode_between: [1, 4]",
            "decode_between is a setting of continuous batching and batching is static",
        ),
        (
            "workload: a\nbatching: continuous\npolicy: [fcfs, skip]",
            "policy is a setting of static batching and batching is continuous",
        ),
        ("workload: a\nbuckets: 8,64,32\nbatching: [static, both]", "'both' is not known"),
        ("workload: [a", "not YAML"),
        ("- workload", "write a line for each setting"),
        ("", "write a line for each setting"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused_with_the_name_of_its_file(tmp_path, text, words):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"grid.yaml: .*{words}"):
        read_points(path)


# --- the rows -------------------------------------------------------------------------------------


def test_a_row_has_the_settings_and_what_simulating_them_gives(tmp_path, grid, table, trace):
    frame = swept(grid, tmp_path / "out.csv")
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == 12
    row = frame[(frame["buckets"] == f"{LONG} {SHORT}") & (frame["rate_scale"] == 10)].iloc[0]
    costs = price(BucketSet.parse(row["buckets"]), load_cost(table))
    by_hand = summary(simulate(Workload.read(trace).scaled(rate=10), costs))
    assert {name: row[name] for name in by_hand} == by_hand
    assert row["compile_s"] == sum(cost.compile_s for cost in costs)
    assert row["served"] + row["rejected"] == 30
    assert row["error"] == ""


def test_every_setting_counts(tmp_path, table):
    point = Scenario(
        "azure_conv",
        f"{SHORT} 8,1024,512",
        requests=200,
        seed=3,
        arrivals="poisson:5",
        max_tokens="multiple:2",
        length_scale=0.1,
        rate_scale=0.5,
        policy="length_aware",
        max_wait_s=0.5,
        gather_s=2.0,
        max_age_s=9.0,
        replicas=3,
        router="least_loaded",
        cost=table,
    )
    requests = load_workload(
        point.workload,
        requests=200,
        rng=np.random.default_rng(3),
        arrivals="poisson:5",
        max_tokens="multiple:2",
    ).scaled(lengths=0.1, rate=0.5)
    by_hand = simulate(
        requests,
        price(BucketSet.parse(point.buckets), load_cost(table)),
        Policy("length_aware", max_wait_s=0.5, gather_s=2.0, max_age_s=9.0),
        replicas=3,
        router="least_loaded",
    )
    beyond = replace(point, buckets="16,1024,512", extrapolate=True)
    row, extrapolated = swept([point, beyond], tmp_path / "out.csv").to_dict("records")
    expected = summary(by_hand)
    assert {name: row[name] for name in expected} == expected
    assert (extrapolated["extrapolated"], extrapolated["error"]) == (1, "")


def test_a_start_and_a_client_are_settings_too_and_no_two_points_are_taken_for_one(tmp_path, grid):
    requests = [grid[0], replace(grid[0], warmup=True), replace(grid[0], client_overhead_ms=50.0)]
    plain, cold, slow = swept(requests, tmp_path / "out.csv")["mean_ttft_ms"]
    assert cold > plain
    assert slow == pytest.approx(plain + 50)


def test_a_point_that_cannot_run_has_its_error_in_a_line_and_stops_no_other(tmp_path, grid):
    frame = swept(grid, tmp_path / "out.csv")
    failed = frame["error"] != ""
    assert (frame["buckets"] == "64,64,32").tolist() == failed.tolist()
    assert "bucket 64,64,32 is outside of the cost table" in frame.loc[failed, "error"].iloc[0]
    assert frame.loc[failed, "served"].isna().all()
    assert frame.loc[~failed, "served"].notna().all()
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + len(grid)


def test_an_error_of_many_lines_is_one_line_of_the_file(tmp_path, grid, monkeypatch):
    def broken(*_):
        raise ValueError("first line,\n  second line")

    monkeypatch.setattr(sweep, "_cost", broken)
    swept(grid[:1], tmp_path / "out.csv")
    _, line = (tmp_path / "out.csv").read_text().splitlines()
    assert line.endswith('"first line, second line"')


def test_an_error_of_any_kind_is_a_row(tmp_path, grid, monkeypatch):
    monkeypatch.setattr("spyre_bench.simulate.static.simulate", lambda *_, **__: 1 / 0)
    frame = swept(grid[:2], tmp_path / "out.csv")
    assert frame["error"].tolist() == ["ZeroDivisionError: division by zero"] * 2
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3


def test_without_a_number_a_trace_is_served_whole_and_a_name_drawn_ten_thousand_times(
    tmp_path, trace, table
):
    requests = points(
        {"workload": [trace, "azure_conv"], "buckets": SHORT, "requests": [0, 7], "cost": table}
    )
    frame = swept(requests, tmp_path / "out.csv")
    assert (frame["served"] + frame["rejected"]).tolist() == [30, 7, 10_000, 7]


def test_the_file_reads_as_one_tidy_table_in_the_order_of_the_grid(tmp_path, grid):
    frame = swept(grid, tmp_path / "out.csv")
    read = pd.read_csv(tmp_path / "out.csv")
    assert read["policy"].tolist() == [point.policy for point in grid]
    assert read["busy_s"].equals(frame["busy_s"]), "to the last bit"
    assert [path.name for path in tmp_path.glob("*out*")] == ["out.csv"]


def test_a_point_that_is_asked_for_twice_runs_once(tmp_path, grid, runs):
    frame = swept(grid[:2] * 2, tmp_path / "out.csv")
    assert runs == grid[:2]
    assert len(frame) == 2


# --- interruptions --------------------------------------------------------------------------------


def test_a_finished_sweep_is_not_run_again_and_gives_the_same_rows(tmp_path, grid, runs):
    out = tmp_path / "out.csv"
    good = [point for point in grid if point.buckets != "64,64,32"]
    frame, text = swept(good, out), out.read_bytes()
    runs.clear()
    pd.testing.assert_frame_equal(swept(good, out), frame)
    assert runs == []
    assert out.read_bytes() == text


@pytest.mark.parametrize("missing", [1, 40, 100_000], ids=["a newline", "half a line", "all"])
def test_a_sweep_that_was_cut_off_goes_on_from_its_last_whole_line(tmp_path, grid, runs, missing):
    out = tmp_path / "out.csv"
    whole = swept(grid[:8], out)
    text = out.read_bytes()
    out.write_bytes(text[: max(10, len(text) - missing)])
    runs.clear()
    pd.testing.assert_frame_equal(swept(grid[:8], out), whole)
    assert runs == (grid[:8] if missing == 100_000 else grid[7:8])
    assert out.read_bytes() == text


def test_the_rows_of_a_chunk_are_in_the_file_before_the_next_one_ends(tmp_path, grid, monkeypatch):
    out = tmp_path / "out.csv"
    run_chunk = sweep.run_chunk

    def interrupted(chunk):
        if grid[sweep.POINTS_PER_TASK] in chunk:
            raise KeyboardInterrupt
        return run_chunk(chunk)

    monkeypatch.setattr(sweep, "run_chunk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        swept(grid, out)
    assert len(out.read_text().splitlines()) == 1 + sweep.POINTS_PER_TASK
    monkeypatch.setattr(sweep, "run_chunk", run_chunk)
    pd.testing.assert_frame_equal(swept(grid, out), swept(grid, tmp_path / "anew.csv"))


def test_another_grid_keeps_the_rows_that_are_there_behind_its_own(tmp_path, grid, runs):
    out = tmp_path / "out.csv"
    swept(grid[:2], out)
    runs.clear()
    frame = swept(grid[1:4], out)
    assert runs == grid[2:4]
    assert frame["rate_scale"].tolist() == [point.rate_scale for point in grid[1:4]]
    read = pd.read_csv(out)
    assert list(zip(read["policy"], read["rate_scale"], strict=True)) == [
        (point.policy, point.rate_scale) for point in [*grid[1:4], grid[0]]
    ]


def test_what_failed_is_tried_again(tmp_path, grid, runs, table):
    out = tmp_path / "out.csv"
    point = replace(grid[0], buckets="16,64,32")
    assert "outside of the cost table" in swept([point], out)["error"].item()
    write_cost_table(tmp_path / "cost.csv", machine(*CORNERS, "16,64,32"))
    assert swept([point], out)["error"].item() == ""
    assert runs == [point, point]
    assert len(out.read_text().splitlines()) == 2, "the error is gone from the file"


def test_another_trace_or_table_under_the_same_name_is_simulated_again(
    tmp_path, grid, runs, trace, table
):
    out, point = tmp_path / "out.csv", grid[0]
    before = swept([point], out)
    text = (tmp_path / "trace.csv").read_text()
    (tmp_path / "trace.csv").write_text(
        text.replace("29,40,39", "29,40,32").replace(",10\n", ",9\n")
    )
    after = swept([point], out)
    assert after["useful_tokens"].item() == before["useful_tokens"].item() - 8
    assert len(out.read_text().splitlines()) == 2, "the stale row is gone"
    slower = [replace(row, decode_s=2 * row.decode_s) for row in machine(*CORNERS)]
    write_cost_table(tmp_path / "cost.csv", slower)
    assert swept([point], out)["busy_s"].item() > 1.2 * after["busy_s"].item()
    assert runs == [point] * 3


def test_other_shapes_in_the_file_that_a_grid_names_are_another_point(tmp_path, trace, runs):
    path, out = tmp_path / "shapes.json", tmp_path / "out.csv"
    named = {"workload": trace, "batching": "continuous"}
    named |= {"prefill_shapes": f"@{path}", "decode_shapes": f"@{path}"}
    rows = []
    for width in (2, 4):
        shapes = {"prefill_shapes": ["64,512"], "decode_shapes": [f"{width},512"]}
        path.write_text(json.dumps(shapes))
        rows.append(swept(points(named), out))
    assert [row["decode_shapes"].item() for row in rows] == ["2,512", "4,512"]
    assert rows[0]["busy_s"].item() > rows[1]["busy_s"].item()
    assert len(runs) == 2


def test_a_file_of_before_rows_had_a_basis_is_read_and_its_rows_are_run_again(tmp_path, grid, runs):
    out = tmp_path / "out.csv"
    swept(grid[:2], out)
    text = out.read_bytes()
    pd.read_csv(out).drop(columns=["basis", "max_age_s"]).to_csv(out, index=False)
    runs.clear()
    swept(grid[:1], out)
    assert runs == grid[:1]
    swept(grid[:2], out)
    assert out.read_bytes() == text


def test_a_file_that_another_sweep_fills_is_refused_with_its_process(tmp_path, grid):
    with (
        in_use(tmp_path / "out.csv"),
        pytest.raises(ValueError, match=rf"out.csv is in use by process {os.getpid()}"),
    ):
        swept(grid, tmp_path / "out.csv")


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "one line without an end", "\n"])
def test_a_file_of_another_kind_is_refused_and_left_as_it_is(tmp_path, grid, text):
    out = tmp_path / "out.csv"
    out.write_text(text)
    with pytest.raises(ValueError, match=r"out.csv is not of a sweep: name another file"):
        swept(grid, out)
    assert out.read_text() == text


# --- backends -------------------------------------------------------------------------------------


def test_in_parallel_the_rows_are_those_of_one_process(tmp_path, grid):
    parallel = swept(grid, tmp_path / "parallel.csv", jobs=2)
    pd.testing.assert_frame_equal(parallel, swept(grid, tmp_path / "alone.csv"))
    assert (tmp_path / "parallel.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


@pytest.fixture(scope="module")
def distributed():
    """The library, which may be missing only where the core alone is installed."""
    if os.environ.get("SPYRE_BENCH_CORE_ONLY"):
        return pytest.importorskip("distributed")
    import distributed

    return distributed


def test_on_dask_the_rows_are_those_of_this_machine(tmp_path, grid, distributed):
    on_dask = swept(grid, tmp_path / "dask.csv", backend="dask", jobs=2)
    pd.testing.assert_frame_equal(on_dask, swept(grid, tmp_path / "loky.csv"))
    assert (tmp_path / "dask.csv").read_bytes() == (tmp_path / "loky.csv").read_bytes()


def test_a_running_dask_cluster_is_used_by_its_address_and_left_running(
    tmp_path, grid, distributed
):
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        frame = swept(
            grid, tmp_path / "dask.csv", backend="dask", scheduler=cluster.scheduler_address
        )
        with distributed.Client(cluster) as client:
            on_workers = client.run(lambda: sweep._workload.cache_info().currsize)
    assert len(on_workers) == 2
    assert sum(on_workers.values()) > 0, "they simulated, not this process"
    pd.testing.assert_frame_equal(frame, swept(grid, tmp_path / "loky.csv"))


def test_a_backend_that_answers_all_at_once_is_asked_for_some_at_a_time():
    asked = []

    def parallel(tasks):
        asked.append(len(tasks))
        return [task * 10 for task in tasks]

    results = sweep._in_waves(parallel, 2, range(5))
    assert (next(results), asked) == (0, [2])
    assert (list(results), asked) == ([10, 20, 30, 40], [2, 2, 1])


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"backend": "mpi"}, "backend 'mpi' is not known: use one of loky, dask, ray"),
        ({"scheduler": "tcp://10.0.0.1:8786"}, "is of no use to loky"),
    ],
)
def test_a_backend_that_makes_no_sense_is_refused(tmp_path, grid, chosen, words):
    with pytest.raises(ValueError, match=words):
        swept(grid, tmp_path / "out.csv", **chosen)


@pytest.mark.parametrize(
    ("backend", "library", "remedy"),
    [
        ("dask", "distributed", r"pip install 'spyre-bench\[cluster\]'"),
        ("ray", "ray", "pip install ray"),
    ],
)
def test_a_missing_library_is_named_with_its_remedy(
    tmp_path, grid, monkeypatch, backend, library, remedy
):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=f"{library}.*{remedy}"):
        swept(grid, tmp_path / "out.csv", backend=backend)


def test_a_point_says_how_its_trace_is_to_be_read(tmp_path):
    path = tmp_path / "trace.csv"
    lines = [f"{second * 1000};60;5" for second in range(20)]
    path.write_text("\n".join(["when;prompt_tokens;output_tokens", *lines]))
    grid = {
        "workload": str(path),
        "buckets": "4,64,32",
        "columns": "arrival=when",
        "time_unit": ["s", "ms"],
        "separator": "semicolon",
        "from_s": 5.0,
    }
    seconds, milliseconds = run_chunk(points(grid))
    assert seconds["error"] == milliseconds["error"] == ""
    assert (seconds["served"], milliseconds["served"]) == (19, 15)


def test_a_whole_number_beyond_64_bits_is_refused_by_its_setting(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(f"workload: azure_conv\nbuckets: 4,64,32\nreplicas: {10**30}\n")
    with pytest.raises(ValueError, match=r"setting replicas: 1000.*beyond 64 bits"):
        read_points(path)


def test_a_grid_of_both_kinds_prices_both_by_one_table():
    grid = {"workload": "azure_conv", "buckets": "4,64,32", "batching": ["static", "continuous"]}
    assert {point.cost_source for point in points(grid)} == {"buckets"}
    alone = {"workload": "azure_conv", "batching": ["continuous"]}
    assert {point.cost_source for point in points(alone)} == {"shapes"}
    assert {point.cost_source for point in points(grid | {"cost": "mine.csv"})} == {"mine.csv"}


def test_a_grid_of_both_kinds_takes_settings_of_either():
    grid = {"workload": "azure_conv", "buckets": "4,64,32", "batching": ["static", "continuous"]}
    assert len(points(grid | {"policy": ["fcfs", "skip"], "decode_between": [1, 4]})) == 8


def test_a_grid_of_continuous_batching_alone_needs_no_buckets():
    alone = {"workload": "azure_conv", "batching": ["continuous"], "decode_between": [0, 2]}
    assert [point.decode_between for point in points(alone)] == [0, 2]
    with pytest.raises(ValueError, match="says nothing of buckets"):
        points(alone | {"batching": ["continuous", "static"]})


def test_a_grid_holds_both_kinds_of_batching_side_by_side(table, trace, tmp_path):
    both = points(
        {
            "workload": trace,
            "buckets": f"{SHORT} {LONG}",
            "batching": ["static", "continuous"],
            "prefill_shapes": "64,1024",
            "decode_shapes": "8,1024",
            "cost": table,
        }
    )
    frame = swept(both, tmp_path / "both.csv").set_index("batching")
    static, continuous = frame.loc["static"], frame.loc["continuous"]
    assert static["error"] == continuous["error"] == ""
    assert static["served"] == continuous["served"] == 30
    assert pd.isna(continuous["decode_tail_tokens"])
    assert pd.isna(static["row_pad_tokens"])
    assert continuous["row_pad_tokens"] > 0
    assert static["batch_pad_tokens"] >= 0
    paid = [name for name in COLUMNS if name.startswith("paid_")]
    assert continuous[paid].sum() == pytest.approx(continuous["busy_s"])
