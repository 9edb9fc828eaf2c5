import json

import pytest

from spyre_bench.metrics.waste import waste
from spyre_bench.pass_log import count_passes, read_passes, read_warmup

WARMUP = {"kind": "warmup", "bucket": [4, 64, 32], "prefill_compile_s": 3.0, "was_warm": False}


def passes(batch: int, bucket: list[int], prompt_tokens: list[int], running: list[int]):
    """Lines of a pass log: one second a pass, `running` rows in each."""
    return [
        {"kind": "decode" if step else "prefill", "batch": batch, "bucket": bucket, "step": step,
         "start_s": 1000.0 + 100 * batch + step, "seconds": 1.0, "requests": ["a"],
         "prompt_tokens": prompt_tokens, "running": rows}
        for step, rows in enumerate(running)
    ]  # fmt: skip


@pytest.fixture
def log(tmp_path):
    def write(*lines):
        path = tmp_path / "passes.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


def test_passes_come_in_order_with_their_time_since_the_first(log):
    frame = read_passes(
        log(WARMUP, *passes(0, [4, 64, 32], [5], [1, 1]), *passes(1, [1, 64, 2], [5], [1]))
    )
    assert list(frame["start_s"]) == [0.0, 1.0, 100.0]
    assert list(frame["kind"]) == ["prefill", "decode", "prefill"]
    assert list(frame["bucket"]) == ["4,64,32", "4,64,32", "1,64,2"]
    assert frame["measured_at"][0] == "1970-01-01T00:16:40+00:00"


def test_warmup_is_a_table_of_its_own(log):
    frame = read_warmup(log(WARMUP, *passes(0, [4, 64, 32], [5], [1])))
    assert frame.to_dict("records") == [
        {"bucket": "4,64,32", "prefill_compile_s": 3.0, "was_warm": False}
    ]


def test_waste_of_a_batch_is_as_counted_by_hand(log):
    """Four rows of 64, two used by prompts of 10 and 30, whose answers end after 1 and 3 tokens."""
    [ledger] = waste(read_passes(log(*passes(0, [4, 64, 32], [10, 30], [2, 1, 1])))).to_dict(
        "records"
    )
    assert ledger == {
        "batch": 0,
        "bucket": "4,64,32",
        "useful": 10 + 30 + 1 + 3,
        "batch_pad": 2 * (64 + 3),
        "prompt_pad": 20,
        "bucket_pad": 2 * 34,
        "decode_tail": 2,
        "cap": 0,
        "computed": 4 * 64 + 4 * 3,
        "fill": 44 / (4 * 64 + 4 * 3),
    }


def test_each_batch_has_its_own_ledger(log):
    frame = waste(
        read_passes(log(*passes(0, [1, 64, 2], [64], [1, 1]), *passes(1, [2, 64, 2], [64], [1])))
    )
    assert list(frame["fill"]) == [1.0, 0.5]


@pytest.mark.parametrize(
    "text", ["hello", "[1, 2]", '{"kind": "decode"}', '{"bucket": [4, 64, 2]}']
)
def test_a_line_of_something_else_is_refused_by_number(tmp_path, text):
    path = tmp_path / "passes.jsonl"
    path.write_text(json.dumps(WARMUP) + "\n" + text + "\n")
    with pytest.raises(ValueError, match=r"passes\.jsonl: line 2 is not of a pass log"):
        read_passes(path)


def test_a_log_without_a_pass_is_refused(log):
    with pytest.raises(ValueError, match="holds no pass"):
        read_passes(log(WARMUP))


def test_a_log_without_a_pass_counts_none_and_a_broken_one_is_refused(log):
    assert count_passes(log(WARMUP)) == 0
    assert count_passes(log(WARMUP, *passes(0, [4, 64, 32], [5], [1, 1]))) == 2
    with pytest.raises(ValueError, match="line 2 is not of a pass log: it has no batch"):
        count_passes(log(WARMUP, {"kind": "decode", "bucket": [4, 64, 32]}))
