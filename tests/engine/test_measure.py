"""The cost table: real rows, kept when interrupted, not measured twice."""

import pytest
from typer.testing import CliRunner

from spyre_bench.cost import read_cost_table
from spyre_bench.shapes import Bucket, BucketSet

pytestmark = pytest.mark.engine

BUCKETS = BucketSet.parse("1,64,3 2,64,3")


@pytest.mark.slow
def test_the_command_writes_a_row_a_bucket_and_measures_none_again(tiny_llama, tmp_path):
    from spyre_bench.cli import app

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
    from spyre_bench.engine import measure
    from tests.test_cost import row

    measured = []

    def fake(bucket, model, threads):
        if len(measured) == 1:
            measured.append("interrupted")
            raise KeyboardInterrupt
        measured.append(bucket)
        sizes = {name: getattr(bucket, name) for name in Bucket.__slots__}
        return row(model=model, threads=threads, host=measure.platform.node(), **sizes)

    monkeypatch.setattr(measure, "measure_bucket", fake)
    out = tmp_path / "cost.csv"
    with pytest.raises(KeyboardInterrupt):
        measure.measure_table(out, BUCKETS, model="m", threads=1)
    assert [row.bucket for row in read_cost_table(out)] == [Bucket(1, 64, 3)]
    measure.measure_table(out, BUCKETS, model="m", threads=1)
    assert [row.bucket for row in read_cost_table(out)] == list(BUCKETS)
    assert measured == [Bucket(1, 64, 3), "interrupted", Bucket(2, 64, 3)]


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
    from spyre_bench.engine.measure import measure_bucket

    with pytest.raises(ValueError, match=words):
        measure_bucket(tiny_llama, Bucket(1, 64, 3), **setting)
