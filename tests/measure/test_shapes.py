"""Measured shapes in the cost table, on a tiny model."""

import pytest
from typer.testing import CliRunner

from spyre_bench.cost.measured import load_cost_table
from spyre_bench.cost.table import read_cost_table, read_shape_rows
from spyre_bench.measure.shape_passes import undisturbed
from spyre_bench.measure.shapes import measure_shape_table
from spyre_bench.shape_set import DecodeShape, PrefillShape, ShapeSet

pytestmark = pytest.mark.engine


@pytest.mark.slow
def test_the_command_measures_shapes_beside_the_buckets_of_a_table_and_none_again(
    tiny_llama, tmp_path
):
    from spyre_bench.cli.main import app

    out = tmp_path / "cost.csv"
    engine = f"measure --model {tiny_llama} --backend eager --threads 1 --passes 2 --out {out}"
    shapes = "--prefill-shape 64,128 --decode-shape 2,128 --bucket 1,64,3"
    done = CliRunner().invoke(app, [*engine.split(), *shapes.split()])
    assert done.exit_code == 0, done.output
    prefill, decode = read_shape_rows(out)
    assert (prefill.shape, decode.shape) == (PrefillShape(64, 128), DecodeShape(2, 128))
    assert len(read_cost_table(out)) == 1
    for row in (prefill, decode):
        assert min(row.compile_s, row.full_s, row.empty_s, row.fixed_bytes, row.block_bytes) > 0
        assert row.off >= 0
    costs = load_cost_table(out).of_shapes(ShapeSet.parse("64,128", "2,128"))
    assert costs.decode[0].full_s == pytest.approx(decode.full_s)
    assert costs.prefill[0].pass_s(0) == pytest.approx(min(prefill.empty_s, prefill.full_s))
    written = out.stat().st_mtime_ns
    assert CliRunner().invoke(app, [*engine.split(), *shapes.split()]).exit_code == 0
    assert out.stat().st_mtime_ns == written


def test_what_is_missing_is_measured_in_one_engine_and_nothing_again(tmp_path, monkeypatch):
    from spyre_bench.measure import shapes as measuring
    from tests.cost.test_measured_shapes import shape_row
    from tests.measure.test_buckets import HERE

    engines = []

    def fake(shapes, model, threads):
        engines.append([shape.name for shape in shapes])
        said = {"model": model, "threads": threads}
        return [shape_row(shape, **HERE | said) for shape in shapes]

    monkeypatch.setattr(measuring, "measure_shapes", fake)
    wanted = [PrefillShape(64, 256), DecodeShape(2, 256), DecodeShape(4, 256)]
    shown = []
    measure_shape_table(tmp_path / "c.csv", wanted[1:2], model="m", threads=1)
    rows = measure_shape_table(tmp_path / "c.csv", wanted, shown.append, model="m", threads=1)
    assert engines == [["decode 2,256"], ["prefill 64,256", "decode 4,256"]]
    assert [row.shape for row in shown] == wanted
    assert {row.shape for row in rows} == set(wanted)
    measure_shape_table(tmp_path / "c.csv", wanted, shown.append, model="m", threads=1)
    assert len(engines) == 2


def test_a_shape_with_steps_is_measured_as_the_engine_compiles_it_once(tmp_path, monkeypatch):
    from spyre_bench.measure import shapes as measuring
    from tests.cost.test_measured_shapes import shape_row
    from tests.measure.test_buckets import HERE

    engines = []

    def fake(shapes, **said):
        engines.append([shape.name for shape in shapes])
        return [shape_row(shape, **HERE | said) for shape in shapes]

    monkeypatch.setattr(measuring, "measure_shapes", fake)
    wanted = [DecodeShape.parse(text) for text in ("8/2,2048/64", "8/4,2048")]
    wanted += [PrefillShape.parse("256/64,2048/64")]
    rows = measure_shape_table(tmp_path / "c.csv", wanted, model="m", threads=1)
    assert engines == [["decode 8,2048", "prefill 256,2048"]]
    assert [row.name for row in rows] == engines[0]


def test_a_setting_that_the_engine_refuses_is_told_in_its_words(tiny_llama, tmp_path):
    with pytest.raises(ValueError, match=r"starting with prefill shapes 64,64 .* is unknown"):
        measure_shape_table(
            tmp_path / "c.csv", [DecodeShape(1, 64)], model=str(tiny_llama), compile_backend="x"
        )


def test_rounds_in_which_every_pass_took_longer_are_left_out_and_single_slow_passes_are_not():
    calm = {"a": [1.0, 1.02, 0.98, 1.0], "b": [5.0, 5.1, 9.0, 5.0], "c": [2.0, 2.0, 2.0, 2.1]}
    assert undisturbed(calm) == calm
    slow = {name: [*seconds, 2 * seconds[0]] for name, seconds in calm.items()}
    assert undisturbed(slow) == calm
