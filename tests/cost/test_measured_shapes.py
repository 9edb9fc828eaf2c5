"""Measured shapes of continuous batching: in the table, as costs, and between those measured."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyre_bench.cost.measured import SHIPPED_SHAPES, MeasuredCost, load_cost_table
from spyre_bench.cost.measured_shapes import MeasuredShapes
from spyre_bench.cost.spread import IQR
from spyre_bench.cost.table import ShapeRow, read_cost_table, read_shape_rows, write_cost_table
from spyre_bench.shape_set import DecodeShape, PrefillShape, ShapeSet
from spyre_bench.shapes import Bucket
from tests.cost.test_cost import machine


def decode_s(rows: int, live: int, context: int) -> float:
    """A pass of a machine on which a row costs 2 ms, a live one 1 ms more, a live slot 1 us."""
    return 0.04 + 2e-3 * rows + 1e-3 * live + 1e-6 * live * context


def prefill_s(chunk: int, before: int) -> float:
    return 0.05 + 1e-3 * chunk + 1e-7 * chunk * before


def shape_row(shape: PrefillShape | DecodeShape, **changed) -> ShapeRow:
    """What measuring that machine writes."""
    if isinstance(shape, PrefillShape):
        before = shape.context_length - shape.chunk_length
        full_s, short_s = prefill_s(shape.chunk_length, before), prefill_s(shape.chunk_length, 0)
        said = {"kind": "prefill", "chunk_length": shape.chunk_length, "empty_s": short_s}
    else:
        rows, context = shape.rows, shape.context_length
        full_s, short_s = decode_s(rows, rows, context), decode_s(rows, rows, 1)
        said = {"kind": "decode", "rows": rows, "empty_s": decode_s(rows, 1, 1)}
    said |= {"context_length": shape.context_length, "full_s": full_s, "short_s": short_s}
    said |= {"compile_s": 5.0, "fixed_bytes": 1000, "block_bytes": 10, "cpu": "x"}
    return ShapeRow(**{"model": "x"} | said | changed)


DECODE = [DecodeShape(b, t) for b in (1, 2, 8) for t in (256, 2048)]
PREFILL = [PrefillShape(c, t) for c in (64, 256) for t in (256, 2048)]
ROWS = tuple(map(shape_row, PREFILL + DECODE))
TABLE = MeasuredShapes(ROWS)


def decode_cost(rows: int, context: int, table=TABLE, **more):
    return table.of(ShapeSet((PREFILL[-1],), (DecodeShape(rows, context),), 300), **more).decode[0]


def test_buckets_and_shapes_share_a_table_and_each_is_read_as_it_was_written(tmp_path):
    buckets = machine("1,64,2", "2,64,2")
    write_cost_table(tmp_path / "cost.csv", [*buckets, *ROWS])
    assert read_cost_table(tmp_path / "cost.csv") == buckets
    assert list(map(str, read_shape_rows(tmp_path / "cost.csv"))) == list(map(str, ROWS))  # nan
    write_cost_table(tmp_path / "cost.csv", buckets)
    assert read_shape_rows(tmp_path / "cost.csv") == []


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("x,verify,8,1,256,0.1,0.1", "line 2 .*kind 'verify' is not one of static, prefill, dec"),
        ("x,decode,8,1,100,0.1,0.1", "line 2 .*context_length 100 is not a .* multiple of 64"),
        ("x,decode,8,1,256,-1,0.1", "line 2 .*full_s -1 is not within"),
        ("x,decode,8,1,256,,0.1", "line 2 .*full_s is empty"),
    ],
)
def test_a_shape_that_does_not_read_is_refused_by_line(tmp_path, row, words):
    path = tmp_path / "cost.csv"
    path.write_text(f"model,kind,rows,chunk_length,context_length,full_s,empty_s\n{row}\n")
    with pytest.raises(ValueError, match=f"cost.csv {words}"):
        read_shape_rows(path)


@given(st.sampled_from(DECODE), st.data())
def test_a_measured_decode_shape_knows_its_live_rows_and_their_context(shape, data):
    live = data.draw(st.integers(1, shape.rows))
    context = data.draw(st.integers(1, shape.context_length))
    cost = decode_cost(shape.rows, shape.context_length)
    assert cost.pass_s(live, live * context) == pytest.approx(decode_s(shape.rows, live, context))
    assert cost.compile_s == 5.0
    assert not cost.extrapolated


@given(st.sampled_from(PREFILL), st.data())
def test_a_measured_chunk_knows_what_is_before_it(shape, data):
    before = data.draw(st.integers(0, shape.context_length - shape.chunk_length))
    (cost,) = TABLE.of(ShapeSet((shape,), (DECODE[-1],), 300)).prefill
    assert cost.pass_s(before) == pytest.approx(prefill_s(shape.chunk_length, before))


@given(st.integers(1, 8), st.integers(4, 32))
def test_between_measured_shapes_a_machine_of_the_form_is_found_again(rows, blocks):
    cost = decode_cost(rows, 64 * blocks)
    assert cost.full_s == pytest.approx(decode_s(rows, rows, 64 * blocks))
    assert cost.pass_s(1, 1) == pytest.approx(decode_s(rows, 1, 1))
    assert not cost.extrapolated


def test_a_shape_that_is_off_the_form_pulls_those_beside_it_along():
    slow = [replace(r, full_s=2 * r.full_s) if r.rows == 8 else r for r in ROWS]
    beside = decode_cost(4, 1024, MeasuredShapes(tuple(slow))).full_s / decode_cost(4, 1024).full_s
    assert 1.2 < beside < 1.8


@pytest.mark.parametrize("shape", ["16,256", "8,4096", "8,128"])
def test_outside_of_what_was_measured_there_is_no_figure_unless_asked_for(shape):
    sizes = map(int, shape.split(","))
    with pytest.raises(
        ValueError,
        match=f"decode {shape} is outside .* rows 1 to 8 over contexts 256 to 2048.*--decode-shape",
    ):
        decode_cost(*sizes)
    assert decode_cost(*map(int, shape.split(",")), extrapolate=True).extrapolated


def test_the_command_for_a_shape_with_steps_measures_what_the_engine_compiles():
    with pytest.raises(ValueError, match=r"outside .*--decode-shape 16,4096`"):
        TABLE.of(ShapeSet.parse("256,2048", "16/2,4096/64"))


def test_a_kind_that_was_not_measured_is_named():
    with pytest.raises(ValueError, match=r"no prefill shape: measure some with .*--prefill-shape"):
        decode_cost(8, 256, MeasuredShapes(tuple(map(shape_row, DECODE))))


def test_memory_is_what_the_engine_holds_and_its_blocks():
    assert TABLE.of(ShapeSet(tuple(PREFILL), tuple(DECODE), 300)).memory_bytes == 1000 + 300 * 10


def test_leaving_one_out_finds_the_row_that_is_off():
    middle = replace(shape_row(DecodeShape(4, 1024)), full_s=1.3 * decode_s(4, 4, 1024))
    found = MeasuredShapes((*ROWS, middle)).leave_one_out().set_index(["shape", "quantity"])
    assert found.loc[("decode 4,1024", "full_s"), "error"] == pytest.approx(1 / 1.3 - 1, abs=0.05)
    assert found.loc[("decode 4,1024", "empty_s"), "error"] == pytest.approx(0, abs=1e-9)


def test_a_table_prices_by_its_shapes_and_without_any_by_its_buckets_marked():
    buckets = machine("1,64,2", "8,64,512", "1,1024,2", "8,1024,512", model="x", cpu="x", tp=1)
    like = {name: getattr(buckets[0], name) for name in ("compile_backend", "compile_scope")}
    like |= {name: getattr(buckets[0], name) for name in ("dtype", "model_code", "threads")}
    shapes = ShapeSet((PREFILL[0],), (DECODE[-1],), 300)
    both = MeasuredCost(buckets, shape_rows=[replace(row, **like) for row in ROWS])
    assert both.of_shapes(shapes).decode[0].full_s == pytest.approx(decode_s(8, 8, 2048))
    assert both.of(buckets[0].bucket).prefill_s == buckets[0].prefill_s
    assert "4 buckets measured" in both.label
    assert "10 shapes measured" in both.label
    assert MeasuredCost(buckets).of_shapes(shapes).decode[0].extrapolated
    with pytest.raises(ValueError, match="mixes engines, its cpu is x and y"):
        MeasuredCost(buckets, shape_rows=[replace(row, **like, cpu="y") for row in ROWS])
    with pytest.raises(ValueError, match="holds a shape twice"):
        MeasuredCost((), shape_rows=[ROWS[0], ROWS[0]])


def test_a_table_of_shapes_alone_prices_them_and_says_what_a_bucket_lacks(tmp_path):
    write_cost_table(tmp_path / "cost.csv", ROWS)
    table = load_cost_table(tmp_path / "cost.csv")
    assert table.of_shapes(ShapeSet((PREFILL[0],), (DECODE[-1],), 300)).compile_s == 10.0
    assert table.model_name == "x"
    for ask in (lambda: table.of(Bucket(1, 64, 2)), lambda: table.largest, lambda: table.span):
        with pytest.raises(ValueError, match="shapes of continuous batching only, and no bucket"):
            ask()


def test_the_spread_of_a_measured_shape_is_its_own_and_of_one_between_the_tables_error_too():
    own = MeasuredShapes(tuple(replace(row, full_iqr_s=0.1 * row.full_s) for row in ROWS))
    measured = own.of(ShapeSet((PREFILL[-1],), (DECODE[-1],), 300))
    spread = own.spread(measured)
    assert spread.below[:, 0] == pytest.approx([0.1 / IQR] * 2)
    assert "between" not in spread.source
    between = own.spread(own.of(ShapeSet((PREFILL[-1],), (DecodeShape(4, 2048),), 300)))
    assert between.below[1, 0] >= 0.1 / IQR
    assert "decode 4,2048" in between.source


def test_there_is_no_spread_beyond_the_measured_shapes_nor_of_a_table_without_ranges():
    wide = ShapeSet((PREFILL[-1],), (DecodeShape(64, 2048),), 3000)
    own = MeasuredShapes(tuple(replace(row, full_iqr_s=0.1 * row.full_s) for row in ROWS))
    assert own.spread(own.of(wide, extrapolate=True)) is None
    assert TABLE.spread(TABLE.of(ShapeSet((PREFILL[-1],), (DECODE[-1],), 300))) is None
    assert load_cost_table().spread_of_shapes(own.of(wide, extrapolate=True)) is None


def test_the_shapes_that_ship_are_within_their_aims_where_one_is_left_out():
    """Median 3 %, worst 10 %: every width is there, so none is guessed from its neighbours."""
    errors = load_cost_table(SHIPPED_SHAPES).measured_shapes.leave_one_out()["error"].abs()
    assert len(errors) > 150
    assert errors.median() < 0.03
    assert errors.max() < 0.10


def test_the_shapes_that_ship_know_what_an_engine_of_them_may_be_asked():
    table = load_cost_table(SHIPPED_SHAPES)
    costs = table.of_shapes(ShapeSet.parse("64,64 192,704 512,3072", "1,64 3,1984 8,3072"))
    assert not any(cost.extrapolated for cost in costs.each)
    assert all(0 < cost.compile_s < 30 for cost in costs.each)
    wide = costs.decode[-1]
    assert wide.pass_s(1, 1) < wide.pass_s(8, 8) <= wide.pass_s(8, 8 * 1024) < wide.full_s
    assert table.measured_shapes.longest_context == 3072
    for row in table.shape_rows:
        assert row.empty_s <= 1.1 * row.full_s
        assert row.off < 0.15


@given(st.integers(1, 24), st.floats(0.5, 2.0))
def test_a_width_that_is_off_is_guessed_from_itself_at_other_contexts(blocks, slower):
    """A kernel for two rows may be slower than one for three."""
    rows = [shape_row(DecodeShape(b, t)) for b in (1, 2, 3, 4) for t in (64, 512, 1536)]
    times = ("full_s", "short_s", "empty_s")
    off = [
        replace(row, **{name: slower * getattr(row, name) for name in times})
        if row.rows == 2
        else row
        for row in rows
    ]
    table = MeasuredShapes((*off, *map(shape_row, PREFILL)))
    at = (DecodeShape(2, 64 * blocks),)
    cost = table.of(ShapeSet((PREFILL[0],), at, 300)).decode[0]
    assert cost.full_s == pytest.approx(slower * decode_s(2, 2, 64 * blocks), rel=0.02)
