import math

import pytest

from spyre_bench.cost import (
    COLUMNS,
    CostRow,
    StartupFit,
    break_even_requests,
    read_cost_table,
    request_s,
    write_cost_table,
)
from spyre_bench.shapes import Bucket, BucketSet


def row(**changed) -> CostRow:
    values = dict.fromkeys(COLUMNS, 1) | {
        name: "x" for name in COLUMNS if CostRow.__annotations__[name] == "str"
    }
    return CostRow(**values | {"prompt_length": 64, "new_tokens": 2} | changed)


def test_a_table_reads_back_as_it_was_written(tmp_path):
    rows = [row(prefill_s=0.25), row(batch_size=2, measured_at="2026-01-01T00:00:00+00:00")]
    write_cost_table(tmp_path / "cost.csv", rows)
    assert read_cost_table(tmp_path / "cost.csv") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["cost.csv"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a CSV file"),
        ("a,b\n1,2\n", "columns .*batch_size.* are missing"),
        (",".join(COLUMNS) + "\n" + ",".join("y" for _ in COLUMNS), "does not read"),
    ],
)
def test_a_broken_table_is_refused_by_name(tmp_path, text, words):
    path = tmp_path / "cost.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"cost.csv.*{words}"):
        read_cost_table(path)


def test_start_up_that_grows_with_prompt_and_cache_is_found_again_and_extrapolated():
    def seconds(bucket: Bucket) -> float:
        return 5 + 0.01 * bucket.batch_size * bucket.prompt_length + 0.002 * bucket.batch_size * (
            bucket.prompt_length + bucket.new_tokens
        )  # fmt: skip

    measured = list(BucketSet.parse("1,64,32 2,64,32 1,128,32 1,64,64"))
    fit = StartupFit.of(measured, [seconds(bucket) for bucket in measured])
    assert (fit.fixed_s, fit.prompt_token_s, fit.kv_slot_s) == pytest.approx((5, 0.01, 0.002))
    assert fit.predict(Bucket(8, 256, 64)) == pytest.approx(seconds(Bucket(8, 256, 64)))


def test_a_fit_never_says_that_more_work_costs_less():
    measured = [Bucket(1, 64, 32), Bucket(2, 64, 32)]
    fit = StartupFit.of(measured, [10.0, 8.0])
    assert fit.predict(Bucket(8, 64, 32)) >= fit.predict(Bucket(1, 64, 32))


def test_one_bucket_shows_no_growth():
    with pytest.raises(ValueError, match="1 bucket: growth needs two"):
        StartupFit.of([Bucket(1, 64, 32)] * 2, [1.0, 1.0])


def test_a_request_of_a_full_batch_costs_its_share():
    """Four rows, three tokens: one prefill of 1 s and two decodes of 0.5 s."""
    assert request_s(Bucket(4, 64, 32), 1.0, 0.5, 3) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("own_s", "fallback_s", "requests"), [(0.5, 0.75, 40), (0.5, 0.5, math.inf), (1, 0.5, math.inf)]
)
def test_a_bucket_pays_when_its_savings_reach_its_start_up(own_s, fallback_s, requests):
    assert break_even_requests(10, own_s, fallback_s) == requests
