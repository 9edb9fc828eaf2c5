import math

import pandas as pd
import pytest

from spyre_bench.shapes import Bucket, BucketSet
from spyre_bench.studies.startup import (
    StartupFit,
    batch_s,
    break_even,
    break_even_requests,
    corners,
    growth,
    pays,
    predict,
    unless,
)

BASE = Bucket(1, 64, 32)


def starts(cold, warm=lambda bucket, first: 1.0) -> pd.DataFrame:
    """Cold and warm starts of the corners of BASE and 2, with a compile of these seconds."""
    return pd.DataFrame(
        {
            "role": role,
            "start": start,
            "bucket": str(bucket),
            "compile_s": seconds(bucket, index == 0),
            "first_run_s": 1.0,
            "startup_s": seconds(bucket, index == 0),
            "prefill_s": bucket.prompt_length / 64,
            "decode_s": 0.5,
        }
        for start, seconds in (("cold", cold), ("warm", warm))
        for role, buckets in zip(("fitted", "held out"), corners(BASE, 2), strict=True)
        for index, bucket in enumerate(reversed(list(buckets)))
    )


def linear(bucket: Bucket, first: bool) -> float:
    slots = bucket.batch_size * bucket.context_length
    return 5 + 0.01 * bucket.batch_size * bucket.prompt_length + 0.002 * slots + 9 * first


def test_the_corners_with_two_dimensions_grown_are_held_out():
    fitted, held_out = corners(BASE, 2)
    assert fitted == BucketSet.parse("1,64,32 2,64,32 1,128,32 1,64,64 2,128,64")
    assert held_out == BucketSet.parse("2,128,32 2,64,64 1,128,64")


def test_growth_is_relative_to_the_base_bucket():
    frame = growth(starts(lambda bucket, first: bucket.batch_size * bucket.prompt_length), BASE, 2)
    cold = frame[frame["stage"] == "compile, cold"].set_index("dimension")["ratio"]
    assert cold.to_dict() == {"batch size B": 2.0, "prompt length P": 2.0, "new tokens N": 1.0}


def test_held_out_buckets_are_predicted_and_what_is_paid_once_is_taken_off_the_first():
    frame = predict(starts(linear))
    cold = frame[frame["start"] == "cold"]
    assert cold["error"].abs().max() < 1e-9
    added = [linear(Bucket.parse(text), first=False) for text in cold["bucket"]]
    assert list(cold["marginal_s"]) == pytest.approx(added)
    assert len(frame) == 16


def test_a_start_quicker_than_what_is_paid_once_adds_no_negative_seconds():
    """The first held-out bucket, 2,128,32, is disturbed: it starts in a tenth of a second."""

    def disturbed(bucket, first):
        quick = first and bucket == Bucket(2, 128, 32)
        return 0.1 if quick else linear(bucket, first)

    frame = predict(starts(disturbed)).set_index(["bucket", "start"])
    assert frame.at[("2,128,32", "cold"), "marginal_s"] == 0


def test_every_bucket_but_the_fallback_is_weighed_against_it():
    """Prompts of 64 instead of 128 save one second a batch, of which the start-up cost six."""
    frame = predict(starts(lambda bucket, first: 6.0))
    paid = break_even(frame, Bucket(2, 128, 64), output_tokens=3).set_index(["bucket", "start"])
    assert paid.at[("2,64,32", "cold"), "requests"] == pytest.approx(12)
    assert paid.at[("1,64,32", "cold"), "requests"] == pytest.approx(6)
    assert paid.at[("1,64,32", "warm"), "requests"] == pytest.approx(1)
    assert paid.at[("2,128,32", "cold"), "requests"] == math.inf
    assert paid.at[("2,64,32", "cold"), "batch_s"] == 1 + 2 * 0.5
    assert ("2,128,64", "cold") not in paid.index


def test_a_bucket_without_room_for_the_outputs_never_pays():
    frame = predict(starts(lambda bucket, first: 6.0))
    paid = break_even(frame, Bucket(2, 128, 64), output_tokens=33)
    small = paid[paid["bucket"].str.endswith(",32")]
    assert len(small)
    assert small["requests"].eq(math.inf).all()
    assert small["batch_s"].isna().all()


def test_start_up_that_grows_with_prompt_and_cache_is_found_again_and_extrapolated():
    first, *others = BucketSet.parse("2,128,64 1,64,32 2,64,32 1,128,32 1,64,64")
    fit = StartupFit.of(
        [first, *others], [linear(first, True), *(linear(other, False) for other in others)]
    )
    assert (fit.bucket_s, fit.prompt_token_s, fit.kv_slot_s) == pytest.approx((5, 0.01, 0.002))
    assert fit.once_s == pytest.approx(9)
    large, small = Bucket(8, 256, 64), Bucket(1, 256, 64)
    assert fit.predict([large, small]) == pytest.approx([linear(large, True), linear(small, False)])


def test_a_fit_never_says_that_more_work_costs_less():
    fit = StartupFit.of(list(BucketSet.parse("1,64,32 2,64,32 4,64,32")), [10.0, 8.0, 6.0])
    _, small, large = fit.predict([Bucket(1, 64, 32), Bucket(1, 64, 32), Bucket(8, 64, 32)])
    assert large >= small


def test_two_buckets_show_no_growth():
    with pytest.raises(ValueError, match="2 buckets in the start: growth shows in three"):
        StartupFit.of([Bucket(1, 64, 32), Bucket(2, 64, 32)], [1.0, 1.0])


def test_a_batch_is_one_prefill_and_a_decode_for_each_further_token():
    assert batch_s(1.0, 0.5, 1) == 1.0
    assert batch_s(1.0, 0.5, 3) == 2.0


@pytest.mark.parametrize(
    ("own_s", "fallback_s", "requests"), [(2.0, 3.0, 40), (2.0, 2.0, math.inf), (3, 2, math.inf)]
)
def test_a_bucket_pays_when_its_savings_reach_its_start_up(own_s, fallback_s, requests):
    """Four requests save one second together, a quarter each: forty of them save ten."""
    assert break_even_requests(10, own_s, fallback_s, rows=4) == requests


def test_a_bucket_that_never_pays_is_said_to_and_how_far_it_is_from_paying():
    paid = pd.DataFrame(
        {
            "start": ["cold", "cold", "warm"],
            "requests": [math.inf, math.inf, 1234.0],
            "batch_s": [2.5, 3.0, 1.0],
            "fallback_batch_s": [2.0, 2.0, 2.0],
        }
    )
    assert pays(paid) == {"cold": "never", "warm": "after 1,234 requests or more"}
    assert unless(paid) == "batches of a further bucket that are 20% faster: then one can pay."
    paid.loc[0, "requests"] = 99.0
    assert unless(paid).startswith("fewer than 99 requests a cold start")
