from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyre_bench.cost.bucket_cost import BucketCost, price
from spyre_bench.cost.closed_form import FittedCost, error_table
from spyre_bench.cost.measured import MeasuredCost, load_cost_table
from spyre_bench.cost.table import CostRow, read_cost_table, read_shape_rows, write_cost_table
from spyre_bench.shapes import Bucket, BucketSet

COLUMNS = [field.name for field in fields(CostRow)]


def row(**changed) -> CostRow:
    values = {it.name: "x" if str(it.type) == "str" else 1 for it in fields(CostRow)}
    return CostRow(**values | {"prompt_length": 64, "new_tokens": 2} | changed)


def test_a_table_reads_back_as_it_was_written(tmp_path):
    rows = [row(prefill_s=0.25), row(batch_size=2, measured_at="2026-01-01T00:00:00+00:00")]
    write_cost_table(tmp_path / "cost.csv", rows)
    assert read_cost_table(tmp_path / "cost.csv") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["cost.csv"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty: it needs a line of column names"),
        ("a,b\n1,2\n", "columns .*batch_size.*decode_s.* are missing"),
        ("model,batch_size,prompt_length,new_tokens,prefill_s,decode_s\nx,1,64,2,,1", "prefill_s"),
        (",".join(COLUMNS) + "\n" + ",".join("y" for _ in COLUMNS), "does not read"),
    ],
)
def test_a_broken_table_is_refused_by_name(tmp_path, text, words):
    path = tmp_path / "cost.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"cost.csv.*{words}"):
        read_cost_table(path)


def test_a_table_of_somebody_else_needs_the_bucket_and_the_seconds_of_its_passes(tmp_path):
    path = tmp_path / "cost.csv"
    path.write_text(
        "decode_s,prefill_s,new_tokens,prompt_length,batch_size,model,cpu,compile_s\n"
        "0.1,0.5,2,64,1,mine,,40\n0.2,0.6,2,64,2,mine,,\n"
    )
    first, second = read_cost_table(path)
    assert (first.bucket, first.prefill_s, first.decode_s) == (Bucket(1, 64, 2), 0.5, 0.1)
    assert (first.compile_s, second.compile_s, first.cpu, first.tp) == (40.0, 0.0, "", 1)
    write_cost_table(path, [first, second])
    assert [str(one) for one in read_cost_table(path)] == [str(first), str(second)]


def machine(*buckets: str, **changed) -> list[CostRow]:
    """Rows of a machine that obeys the closed form: prefill 0.1 + 0.001·B·P, decode
    0.05 + 0.01·B + 1e-5·B·(P + N) s."""
    rows = []
    for text in buckets:
        b, p, n = map(int, text.split(","))
        rows.append(
            row(
                batch_size=b,
                prompt_length=p,
                new_tokens=n,
                compile_s=10.0,
                prefill_s=0.1 + 1e-3 * b * p,
                decode_s=0.05 + 0.01 * b + 1e-5 * b * (p + n),
                memory_bytes=1000 + 2 * b * (p + n) + b * p * (p + n),
                **changed,
            )
        )
    return rows


CORNERS = [f"{b},{p},{n}" for b in (1, 8) for p in (64, 1024) for n in (2, 512)]


def test_a_batch_takes_one_prefill_and_a_decode_for_each_further_token():
    cost = BucketCost(Bucket(4, 64, 32), prefill_s=0.5, decode_s=0.125, compile_s=3.0)
    assert cost.batch_s(1) == 0.5
    assert cost.batch_s(5) == 1.0
    assert cost.warmup_s == 3.625


def test_a_table_prices_nothing_below_its_smallest_sizes_unless_it_extrapolates():
    table = MeasuredCost(machine("2,128,32", "8,128,32", "2,1024,32", "2,128,512"))
    assert table.smallest == (2, 128, 32)
    assert replace(table, extrapolate=True).smallest == (1, 64, 2)
    assert FittedCost.fit(table.rows).smallest == (1, 64, 2)


def test_a_measured_bucket_costs_exactly_what_was_measured():
    rows = machine(*CORNERS)
    rows[3] = replace(rows[3], prefill_s=123.0, decode_s=4.5, compile_s=6.0, memory_bytes=7)
    cost = MeasuredCost(rows).of(rows[3].bucket)
    assert cost == BucketCost(rows[3].bucket, 123.0, 4.5, 6.0, 7)


@given(st.integers(1, 8), st.integers(1, 16), st.integers(2, 512))
def test_between_measured_buckets_a_machine_of_the_closed_form_is_found_again(b, sticks, new):
    bucket = Bucket(b, 64 * sticks, new)
    (truth,) = machine(str(bucket))
    cost = MeasuredCost(machine(*CORNERS, "2,256,64")).of(bucket)
    assert cost.prefill_s == pytest.approx(truth.prefill_s)
    assert cost.decode_s == pytest.approx(truth.decode_s)
    assert cost.memory_bytes == pytest.approx(truth.memory_bytes, abs=1)
    assert not cost.extrapolated


def test_between_two_buckets_that_are_off_the_form_the_ratio_is_interpolated():
    rows = machine(*CORNERS)
    slower = [replace(r, decode_s=r.decode_s * (2 if r.batch_size == 8 else 1)) for r in rows]
    fitted = FittedCost.fit(slower)
    at = Bucket(3, 256, 32)
    ratio = {
        b: np.mean([r.decode_s / fitted.of(r.bucket).decode_s for r in slower if r.batch_size == b])
        for b in (1, 8)
    }
    found = MeasuredCost(slower).of(at).decode_s / fitted.of(at).decode_s
    assert min(ratio.values()) * 0.9 < found < max(ratio.values()) * 1.1


@pytest.mark.parametrize("bucket", ["16,64,32", "4,2048,32", "4,64,1024"])
def test_outside_the_measured_range_there_is_no_figure_unless_asked_for(bucket):
    rows, bucket = machine(*CORNERS), Bucket.parse(bucket)
    with pytest.raises(
        ValueError,
        match=f"bucket {bucket} is outside of the cost table, which "
        "spans B 1 to 8, P 64 to 1024, N 2 to 512: measure it",
    ):
        MeasuredCost(rows).of(bucket)
    cost = MeasuredCost(rows, extrapolate=True).of(bucket)
    assert cost.extrapolated
    assert cost.decode_s == pytest.approx(machine(str(bucket))[0].decode_s)


def test_a_table_with_one_length_of_answer_says_nothing_of_others():
    rows = machine("1,64,32", "8,64,32", "1,256,32", "8,256,32")
    assert not MeasuredCost(rows).of(Bucket(4, 128, 32)).extrapolated
    with pytest.raises(ValueError, match="N 32 to 32"):
        MeasuredCost(rows).of(Bucket(4, 128, 64))


def test_a_single_row_prices_its_own_bucket():
    (only,) = machine("4,64,32")
    assert MeasuredCost([only]).of(only.bucket).prefill_s == only.prefill_s
    with pytest.raises(ValueError, match="outside of the cost table"):
        MeasuredCost([only]).of(Bucket(2, 64, 32))


def test_leaving_one_out_states_the_error_of_the_interpolation():
    rows = machine(*CORNERS, "2,256,64")
    wrong = replace(rows[-1], decode_s=rows[-1].decode_s * 2)
    found = MeasuredCost([*rows[:-1], wrong]).leave_one_out()
    assert set(found["bucket"]) == {"2,256,64"}, "corners have no surroundings"
    errors = found.set_index("quantity")["error"]
    assert errors["decode_s"] == pytest.approx(-0.5, abs=1e-6)
    assert errors["prefill_s"] == pytest.approx(0.0, abs=1e-6)


def residuals(fit: FittedCost, rows) -> pd.DataFrame:
    return error_table((row, row.bucket, fit.of(row.bucket)) for row in rows)


def test_a_fit_finds_the_constants_again_and_has_no_residuals():
    rows = machine(*CORNERS, "2,256,64")
    fit = FittedCost.fit(rows)
    assert fit.prefill_s == pytest.approx((0.1, 1e-3))
    assert fit.decode_s == pytest.approx((0.05, 0.01, 1e-5))
    assert fit.memory_bytes == pytest.approx((1000, 2, 1))
    assert residuals(fit, rows)["error"].abs().max() < 1e-6


def test_what_a_table_does_not_say_has_no_residual():
    silent = [replace(row, compile_s=0.0, memory_bytes=0) for row in machine(*CORNERS)]
    assert set(residuals(FittedCost.fit(silent), silent)["quantity"]) == {"prefill_s", "decode_s"}


def test_a_floor_is_below_every_row_and_touches_one_of_each_quantity():
    rows = [
        replace(row, prefill_s=row.prefill_s * factor, decode_s=row.decode_s / factor)
        for row, factor in zip(machine(*CORNERS), np.linspace(0.8, 1.5, len(CORNERS)), strict=True)
    ]
    fitted = FittedCost.fit(rows)
    floor = fitted.below(rows)
    errors = residuals(floor, rows).groupby("quantity")["error"].max()
    assert errors["prefill_s"] == pytest.approx(0, abs=1e-12)
    assert errors["decode_s"] == pytest.approx(0, abs=1e-12)
    ratios = np.array(floor.prefill_s) / fitted.prefill_s
    assert ratios.tolist() == pytest.approx([ratios[0]] * 2)
    assert (floor.compile_s, floor.memory_bytes) == (fitted.compile_s, fitted.memory_bytes)


def test_noise_never_makes_more_work_cost_less():
    rows = machine(*CORNERS)
    noisy = [replace(r, prefill_s=1.0 / r.bucket.batch_size) for r in rows]
    assert min(FittedCost.fit(noisy).prefill_s) >= 0


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "the cost table has no row"),
        (machine("1,64,2") + machine("1,64,2"), "holds a bucket twice"),
        (machine("1,64,2") + machine("2,64,2", threads=7), "mixes engines, its threads is 1 and 7"),
    ],
)
def test_a_table_that_is_not_of_one_engine_is_refused(rows, words):
    with pytest.raises(ValueError, match=words):
        MeasuredCost(rows)


def test_prices_come_in_the_order_of_the_buckets():
    buckets = BucketSet.parse("8,64,32 1,1024,2 1,64,32")
    costs = price(buckets, MeasuredCost(machine(*CORNERS)))
    assert [cost.bucket for cost in costs] == list(buckets)


def test_the_shipped_table_spans_what_it_promises_and_states_a_small_error():
    table = load_cost_table()
    for bucket in ("1,64,2", "8,64,2", "1,2048,1024", "8,2048,1024", "3,192,20", "8,1920,1000"):
        assert not table.of(Bucket.parse(bucket)).extrapolated
    errors = table.leave_one_out()
    assert len(errors["bucket"].unique()) >= 20
    off = errors.assign(error=errors["error"].abs()).groupby("quantity")["error"]
    assert off.median()["prefill_s"] < 0.05
    assert off.median()["decode_s"] < 0.08
    # the worst is decoding at B = 2, which on that machine is faster than at B = 1
    assert off.max()["prefill_s"] < 0.3
    assert off.max()["decode_s"] < 0.35


def test_more_work_never_costs_less_in_the_shipped_table():
    table = load_cost_table()
    for small, large in (("1,64,32", "8,64,32"), ("4,64,32", "4,2048,32"), ("4,64,2", "4,64,1024")):
        small, large = (table.of(Bucket.parse(text)) for text in (small, large))
        assert small.prefill_s <= large.prefill_s * 1.05
        assert small.decode_s <= large.decode_s * 1.05


# --- what a cell may hold -------------------------------------------------------------------------

SIX = "model,batch_size,prompt_length,new_tokens,prefill_s,decode_s,compile_s,memory_bytes\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("x,1,64,2,-0.5,0.1,3,9", "prefill_s -0.5 is not within"),
        ("x,1,64,2,0,0.1,3,9", "prefill_s 0 is not within"),
        ("x,1,64,2,inf,0.1,3,9", "prefill_s inf is not within"),
        ("x,1,64,2,nan,0.1,3,9", "prefill_s nan is not within"),
        ("x,1,64,2,1e300,0.1,3,9", "prefill_s 1e300 is not within"),
        ("x,1,64,2,0.5,1e300,3,9", "decode_s 1e300 is not within"),
        ("x,1,64,2,0.5,45,3,9", r"decode_s 45 is not within .* \(are these milliseconds\?\)"),
        ("x,1,64,2,0.5,0.1,-3,9", "compile_s -3 is not within"),
        ("x,1,64,2,0.5,0.1,inf,9", "compile_s inf is not within"),
        ("x,1,64,2,0.5,0.1,3,-9", "memory_bytes -9 is not within"),
        ("x,1,64,2,0.5,0.1,3,9.5", "memory_bytes 9.5 is not a whole number"),
        ("x,2.7,64,2,0.5,0.1,3,9", "batch_size 2.7 is not a whole number"),
        ("x,0,64,2,0.5,0.1,3,9", "batch_size 0 is not within"),
        ("x,1,64.5,2,0.5,0.1,3,9", "prompt_length 64.5 is not a whole number"),
        ("x,1,65,2,0.5,0.1,3,9", "bucket prompt_length 65 is not a positive multiple of 64"),
        ("x,1,64,1,0.5,0.1,3,9", "new_tokens 1 is not within"),
        ("x,1,64,2,,0.1,3,9", "prefill_s is empty"),
        (",1,64,2,0.5,0.1,3,9", "model is empty"),
        ("x,1,64,2,fast,0.1,3,9", "prefill_s fast is not a number"),
        ("x,1," + "9" * 400 + ",2,0.5,0.1,3,9", r"prompt_length 9+\.\.\. is not"),
    ],
)
def test_a_bad_cell_is_refused_with_line_column_and_remedy(tmp_path, line, words):
    path = tmp_path / "cost.csv"
    path.write_text(SIX + "x,1,128,2,0.5,0.1,3,9\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"cost\.csv line 3 does not read .*: {words}"):
        read_cost_table(path)


SHAPES = "model,kind,rows,chunk_length,context_length,full_s,empty_s\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("x,decode,4,,512,120,40", "full_s 120 is not within 1e-12 and 10 for decode 4,512"),
        ("x,decode,4,,512,8,40", "empty_s 40 is not within 1e-12 and 10 for decode 4,512"),
        ("x,prefill,,64,512,300,20", "full_s 300 is not within 1e-12 and 64 for prefill 64,512"),
    ],
)
def test_milliseconds_of_a_shape_are_refused_by_what_its_pass_computes(tmp_path, line, words):
    path = tmp_path / "shapes.csv"
    path.write_text(SHAPES + line + "\n")
    with pytest.raises(ValueError, match=rf"line 2 .*: {words}: .*are these milliseconds\?"):
        read_shape_rows(path)


def test_a_prefill_may_take_as_long_as_the_slowest_core_that_anybody_serves_on(tmp_path):
    path = tmp_path / "cost.csv"
    path.write_text(SIX + "8B on one slow core,1,64,2,52,1.6,3,9\n")
    assert read_cost_table(path)[0].prefill_s == 52
    path.write_text(SIX + "milliseconds,1,64,2,90,8.5,3,9\n")
    with pytest.raises(ValueError, match="prefill_s 90 is not within 1e-12 and 64 for 1,64,2"):
        read_cost_table(path)


def test_a_comma_too_many_does_not_shift_the_columns(tmp_path):
    path = tmp_path / "cost.csv"
    for header in (SIX, SIX[:-1] + ",\n"):
        path.write_text(header + "x,1,64,2,0.5,0.1,3,9,\n")
        (found,) = read_cost_table(path)
        assert (found.bucket, found.prefill_s) == (Bucket(1, 64, 2), 0.5)
    path.write_text(SIX + "x,1,64,2,0.5,0.1,3,9,10\n")
    with pytest.raises(
        ValueError, match=r"cost\.csv.*line 2 there are more values than column names"
    ):
        read_cost_table(path)


@pytest.mark.parametrize("name", ["compile_s", "memory_bytes"])
def test_a_limit_on_what_the_table_does_not_say_is_refused(name):
    table = MeasuredCost((row(), row(batch_size=2, **{name: 0})))
    with pytest.raises(ValueError, match=rf"a limit needs {name} .* nothing of bucket 2,64,2"):
        table.require_known(name, "a limit")
    MeasuredCost((row(),)).require_known(name, "a limit")
