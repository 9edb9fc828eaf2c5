import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyre_bench.shapes import Bucket, BucketSet

buckets = st.builds(
    Bucket,
    st.integers(1, 8),
    st.integers(1, 8).map(lambda sticks: 64 * sticks),
    st.integers(2, 64),
)
bucket_sets = st.lists(buckets, min_size=1, max_size=6).map(lambda some: BucketSet(tuple(some)))


@pytest.mark.parametrize("text", ["4,64,32", "4x64x32", [4, 64, 32], (4, 64, 32), " 4, 64, 32 "])
def test_a_bucket_reads_from_text_and_lists(text):
    assert Bucket.parse(text) == Bucket(4, 64, 32)


@given(buckets)
def test_a_bucket_prints_as_it_parses(bucket):
    assert Bucket.parse(str(bucket)) == bucket


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("4,65,32", "prompt_length 65 is not a positive multiple of 64.*use 128"),
        ("4,0,32", "prompt_length 0 .*use 64"),
        ("4,-64,32", "prompt_length -64 .*use 64"),
        ("0,64,32", "batch_size 0 is below 1"),
        ("4,64," + 400 * "9", "new_tokens 99999999999999999999 is above 2,147,483,647: use less"),
        ("4,64,1", "new_tokens 1 is below 2"),
        ("4,64", "'4,64' is not three whole numbers"),
        ("4,64,32,1", "not three whole numbers"),
        ("a,b,c", "not three whole numbers"),
        (7, "7 is not three whole numbers"),
        ("bucket", "'bucket' is not three whole numbers"),
        ([4, 64.0, 32], "prompt_length 64.0 is not a whole number"),
        ([True, 64, 32], "batch_size True is not a whole number"),
    ],
)
def test_a_bad_bucket_is_refused_with_value_rule_and_fix(value, words):
    with pytest.raises(ValueError, match=words):
        Bucket.parse(value)


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        BucketSet(())


def test_a_set_is_ordered_and_holds_each_bucket_once():
    some = BucketSet.parse("4,64,32 1,128,16 4,64,32")
    assert list(some) == [Bucket(1, 128, 16), Bucket(4, 64, 32)]


@given(bucket_sets, st.integers(1, 600), st.integers(1, 80))
def test_a_request_fits_iff_its_answer_is_within_what_its_prompt_allows(some, prompt, new):
    in_theory = new <= some.max_new_tokens(prompt)
    assert bool(some.fitting(prompt, new)) == in_theory
    if in_theory:
        some.require_fit(prompt, new)
    else:
        with pytest.raises(ValueError, match=f"prompt_tokens={prompt} with max_tokens={new}"):
            some.require_fit(prompt, new)


def test_a_refused_request_is_told_the_nearest_buckets_and_the_setting_that_admits_it():
    some = BucketSet.parse("4,64,32 1,512,8")
    with pytest.raises(ValueError, match=r"are 4,64,32, 1,512,8\..*\[1, 128, 40\].*\"buckets\""):
        some.require_fit(70, 40)


@given(buckets, buckets)
def test_a_dominating_bucket_takes_all_that_the_other_takes(one, other):
    if one.dominates(other):
        assert one.fits(other.prompt_length, other.new_tokens)
        assert one.batch_size >= other.batch_size
        assert not other.dominates(one)


@pytest.mark.parametrize(
    "text",
    [
        "4,64,32 2,256,64",
        "4,64,32; 2x256x64",
        "[[4, 64, 32], [2, 256, 64]]",
        '["4,64,32", [2, 256, 64]]',
    ],
)
def test_a_set_reads_from_text_and_from_json(text):
    assert list(BucketSet.parse(text)) == [Bucket(2, 256, 64), Bucket(4, 64, 32)]


@pytest.mark.parametrize("text", ["[[4, 64, 32]", "[[4, 64]]", "[4, 64, 32]", "4 64 32"])
def test_a_set_that_is_not_one_is_refused(text):
    with pytest.raises(ValueError, match="bucket"):
        BucketSet.parse(text)


def test_a_set_reads_from_the_lists_of_existing_deployments():
    lists = {
        "VLLM_SPYRE_WARMUP_BATCH_SIZES": "4,2",
        "VLLM_SPYRE_WARMUP_PROMPT_LENS": "64,256",
        "VLLM_SPYRE_WARMUP_NEW_TOKENS": "32,64",
    }
    assert BucketSet.from_lists(lists) == BucketSet.parse("4,64,32 2,256,64")
    assert BucketSet.from_lists({}) == BucketSet.parse("1,64,20")
    with pytest.raises(ValueError, match=r"unequal length: .*BATCH_SIZES has 1"):
        BucketSet.from_lists(lists | {"VLLM_SPYRE_WARMUP_BATCH_SIZES": "4"})
    with pytest.raises(ValueError, match="BATCH_SIZES='four,2' is not a list of whole numbers"):
        BucketSet.from_lists(lists | {"VLLM_SPYRE_WARMUP_BATCH_SIZES": "four,2"})
