"""The cost table: real rows, kept when interrupted, not measured twice."""

import platform
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from spyre_bench.cost.source import load_cost
from spyre_bench.cost.table import read_cost_table, write_cost_table
from spyre_bench.measure.buckets import DEFAULTS, measure_table
from spyre_bench.shapes import Bucket, BucketSet
from tests.cost.test_cost import row

pytestmark = pytest.mark.engine

BUCKETS = BucketSet.parse("1,64,3 2,64,3")
HERE = DEFAULTS | {
    "host": platform.node(),
    "torch_version": version("torch"),
    "fms_version": version("ibm-fms"),
}


@pytest.mark.slow
def test_the_command_writes_a_row_a_bucket_and_measures_none_again(tiny_llama, tmp_path):
    from spyre_bench.cli.main import app

    out = tmp_path / "new" / "cost.csv"
    command = f"measure --model {tiny_llama} --bucket 1,64,3 --backend eager --threads 1"
    command = [*command.split(), "--passes", "3", "--out", str(out)]
    assert CliRunner().invoke(app, command).exit_code == 0
    (row,) = read_cost_table(out)
    assert row.bucket == Bucket(1, 64, 3)
    assert row.threads == 1
    assert row.passes == 3
    assert min(row.compile_s, row.load_s, row.prefill_s, row.decode_s, row.memory_bytes) > 0
    written = out.stat().st_mtime_ns
    assert CliRunner().invoke(app, command).exit_code == 0
    assert out.stat().st_mtime_ns == written


def test_an_interrupted_run_keeps_its_rows_and_goes_on(tiny_llama, tmp_path, monkeypatch):
    from spyre_bench.measure import buckets

    measured = []

    def fake(bucket, model, threads):
        if len(measured) == 1:
            measured.append("interrupted")
            raise KeyboardInterrupt
        measured.append(bucket)
        sizes = {name: getattr(bucket, name) for name in Bucket.__slots__}
        return row(**{**HERE, "model": model, "threads": threads, **sizes})

    monkeypatch.setattr(buckets, "measure_bucket", fake)
    out = tmp_path / "cost.csv"
    with pytest.raises(KeyboardInterrupt):
        buckets.measure_table(out, BUCKETS, model="m", threads=1)
    assert [row.bucket for row in read_cost_table(out)] == [Bucket(1, 64, 3)]
    buckets.measure_table(out, BUCKETS, model="m", threads=1)
    assert [row.bucket for row in read_cost_table(out)] == list(BUCKETS)
    assert measured == [Bucket(1, 64, 3), "interrupted", Bucket(2, 64, 3)]


@pytest.fixture
def measured(monkeypatch) -> list[Bucket]:
    """What is measured, each in an instant; a bucket's prefill takes its prompt's milliseconds."""
    seen = []

    def fake(bucket, model, threads, passes):
        seen.append(bucket)
        sizes = {name: getattr(bucket, name) for name in Bucket.__slots__}
        said = {"model": model, "threads": threads, "passes": passes}
        return row(**{**HERE, **said, **sizes, "prefill_s": bucket.prompt_length / 1e3})

    monkeypatch.setattr("spyre_bench.measure.buckets.measure_bucket", fake)
    return seen


def test_a_bucket_that_is_there_is_shown_with_its_own_row(measured, tmp_path):
    shown, setting = [], {"model": "m", "threads": 1, "passes": 3}
    some = BucketSet.parse("1,64,3 1,128,3")
    measure_table(tmp_path / "cost.csv", some, **setting)
    measure_table(tmp_path / "cost.csv", some, shown.append, **setting)
    assert [(row.bucket, row.prefill_s) for row in shown] == [
        (Bucket(1, 64, 3), 0.064),
        (Bucket(1, 128, 3), 0.128),
    ]
    assert len(measured) == 2


def test_other_passes_replace_a_row_and_the_table_stays_one_that_is_read(measured, tmp_path):
    out = tmp_path / "cost.csv"
    measure_table(out, BUCKETS, model="m", threads=1, passes=3)
    measure_table(out, [Bucket(1, 64, 3)], model="m", threads=1, passes=5)
    assert {row.bucket: row.passes for row in load_cost(out).rows} == {
        Bucket(1, 64, 3): 5,
        Bucket(2, 64, 3): 3,
    }


@pytest.mark.parametrize(
    "other",
    [{"host": "elsewhere"}, {"model": "another"}, {"threads": 7}, {"dtype": "bfloat16"}],
)
def test_a_table_of_another_host_or_engine_is_refused_before_anything_is_measured(
    measured, tmp_path, other
):
    out = tmp_path / "cost.csv"
    write_cost_table(out, [row(**{**HERE, "model": "m", "threads": 1, **other})])
    (name, value) = next(iter(other.items()))
    with pytest.raises(ValueError, match=rf"cost.csv holds rows of {name} {value}, and this would"):
        measure_table(out, BUCKETS, model="m", threads=1, passes=3)
    assert measured == []


@pytest.mark.parametrize("threads", [None, 1])
def test_no_card_at_all_is_refused_before_the_cores_are_divided(measured, tmp_path, threads):
    with pytest.raises(ValueError, match="tensor parallel size 0: use 1 to 8"):
        measure_table(tmp_path / "cost.csv", BUCKETS, model="m", tp=0, threads=threads)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"tp": 9}, "tensor parallel size 9: use 1 to 8"),
        ({"passes": 0}, "passes 0 is below 1"),
        (
            {"compile_backend": "x"},
            "starting with buckets 1,64,3 failed: compile_backend 'x' is unknown",
        ),
    ],
)
def test_a_setting_that_cannot_be_measured_is_refused_in_the_engines_words(
    tiny_llama, setting, words
):
    from spyre_bench.measure.buckets import measure_bucket

    with pytest.raises(ValueError, match=words):
        measure_bucket(tiny_llama, Bucket(1, 64, 3), **setting)
