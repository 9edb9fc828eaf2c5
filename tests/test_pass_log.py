import json
import os
from pathlib import Path

import pytest

from spyre_bench.metrics.waste import waste
from spyre_bench.pass_log import (
    Came,
    Gone,
    Pass,
    PassLog,
    Step,
    StepRules,
    Warmup,
    count_passes,
    read_passes,
    read_step_rows,
    read_step_rules,
    read_warmup,
)
from spyre_bench.shape_set import DecodeShape
from spyre_bench.shapes import Bucket

WARMUP = {
    "kind": "warmup",
    "bucket": [4, 64, 32],
    "prefill_compile_s": 3.0,
    "decode_compile_s": 2.0,
    "prefill_s": 0.5,
    "decode_s": 0.1,
    "was_warm": False,
    "graphs": 2,
}


def passes(batch: int, bucket: list[int], prompt_tokens: list[int], running: list[int]):
    """Lines of a pass log: one second a pass, `running` rows in each."""
    return [
        {
            "kind": "decode" if step else "prefill",
            "batch": batch,
            "bucket": bucket,
            "step": step,
            "start_s": 1000.0 + 100 * batch + step,
            "seconds": 1.0,
            "requests": ["a"],
            "prompt_tokens": prompt_tokens,
            "running": rows,
        }
        for step, rows in enumerate(running)
    ]


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
    row = {name: value for name, value in WARMUP.items() if name != "kind"}
    assert frame.to_dict("records") == [row | {"bucket": "4,64,32"}]


def test_what_is_written_is_what_is_read(tmp_path):
    bucket = Bucket(2, 64, 4)
    writer = PassLog(tmp_path / "deeper/passes.jsonl")
    writer.write(Warmup(bucket, 3.0, 2.0, 0.5, 0.1, True, 2))
    writer.write(Pass("prefill", 0, bucket, 1000.0, 0.5, 0, ["a", "b"], [5, 6], 2))
    writer.close()
    path = tmp_path / "deeper/passes.jsonl"
    assert read_warmup(path)["was_warm"].tolist() == [True]
    assert read_passes(path).drop(columns="measured_at").to_dict("records") == [
        {
            "kind": "prefill",
            "batch": 0,
            "bucket": "2,64,4",
            "start_s": 0.0,
            "seconds": 0.5,
            "step": 0,
            "prompt_tokens": [5, 6],
            "running": 2,
        }
    ]


def a_warmup() -> Warmup:
    return Warmup(Bucket(4, 64, 32), 3.0, 2.0, 0.5, 0.1, False, 2)


def test_a_full_disk_ends_the_log_with_one_sentence_and_no_engine(caplog):
    log = PassLog(Path("/dev/full"))
    for _ in range(2):
        log.write(a_warmup())
    log.close()
    (said,) = caplog.messages
    assert said.startswith("The pass log ends here, and passes go on: /dev/full takes no more")


def test_a_restart_keeps_what_the_engine_before_it_logged(tmp_path):
    path = tmp_path / "passes.jsonl"
    for _ in range(3):  # a start that logs nothing leaves the one before it alone
        log = PassLog(path)
        log.write(a_warmup())
        log.close()
        PassLog(path).close()
    assert path.read_text() == ""
    assert len(read_warmup(tmp_path / "passes.jsonl.1")) == 1


def test_a_log_that_another_engine_still_writes_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "passes.jsonl"
    PassLog(path).close()
    log = PassLog(path)
    log.write(a_warmup())
    with pytest.raises(ValueError, match=r"passes.jsonl is written by another .*one for each serv"):
        PassLog(path)
    log.write(a_warmup())
    assert len(read_warmup(path)) == 2
    forked = os.dup(log._file.fileno())  # as a process holds it that was forked meanwhile
    log.close()
    PassLog(path).close()
    os.close(forked)


def test_a_line_that_a_killed_server_left_half_written_is_left_out_with_a_note(log, caplog):
    path = log(WARMUP, *passes(0, [4, 64, 32], [5], [1, 1]))
    whole = path.read_text()
    path.write_text(whole[:-1])
    assert (count_passes(path), caplog.messages) == (2, [])
    path.write_text(whole[:-20])
    assert count_passes(path) == 1
    assert "passes.jsonl: line 3 is half written and left out" in caplog.messages[-1]
    assert read_warmup(path)["graphs"].tolist() == [2]


def test_a_half_written_line_before_others_is_refused(log):
    path = log(WARMUP, *passes(0, [4, 64, 32], [5], [1, 1]))
    first, second, third = path.read_text().splitlines(keepends=True)
    path.write_text(first + second[:-20] + "\n" + third)
    with pytest.raises(ValueError, match="line 2 is not of a pass log"):
        count_passes(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "encode"),
        ("kind", ["x"]),
        ("batch", 1.5),
        ("seconds", "1"),
        ("seconds", float("nan")),
        ("start_s", -1),
        ("prompt_tokens", 5),
        ("prompt_tokens", [True]),
        ("running", None),
        ("bucket", [4, 64]),
    ],
)
def test_a_value_that_no_pass_has_is_refused_by_line(log, name, value):
    [line] = passes(0, [4, 64, 32], [5], [1])
    with pytest.raises(ValueError, match=f"line 2 is not of a pass log: .*({name}|bucket)"):
        count_passes(log(WARMUP, line | {name: value}))


def test_bytes_that_are_no_text_are_refused_by_line(log):
    path = log(WARMUP)
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")
    with pytest.raises(ValueError, match="line 2 is not of a pass log"):
        read_passes(path)


def test_a_log_without_a_warmed_bucket_is_refused(log):
    with pytest.raises(ValueError, match="holds no warmed bucket"):
        read_warmup(log(*passes(0, [4, 64, 32], [5], [1])))


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


def test_what_the_scheduler_knew_is_read_where_it_is_asked_for_on_the_logs_clock(log):
    first, *others = passes(0, [4, 64, 32], [5, 6], [2, 1])
    knew = {
        "place": [1, 3],
        "arrival_s": [999.5, 999.75],
        "seen_s": [999.5, 1000.0],
        "max_tokens": [2, 1],
        "left": [[2, 999.5, 999.5, 999.75, 999.875, 7, 9]],
    }
    path = log(first | knew, *others)
    frame = read_passes(path, waits=True)
    assert frame["seen_s"].tolist() == [[-0.5, 0.0], []]
    assert frame["arrival_s"].tolist() == [[-0.5, -0.25], []]
    assert frame["left"].tolist() == [[[2, -0.5, -0.5, -0.25, -0.125, 7, 9]], []]
    assert not {"place", "seen_s", "left"} & set(read_passes(path))
    with pytest.raises(ValueError, match="6 numbers and not 7: an engine of another version"):
        read_passes(log(first | {"left": [[2, 999.5, 999.5, 999.875, 7, 9]]}), waits=True)
    with pytest.raises(ValueError, match="its left is"):
        read_passes(log(first | {"left": [[1, "a"]]}))


def a_step(**knew) -> Step:
    return Step("rows", DecodeShape(2, 256), 1000.0, 0.5, ["a"], [1], 0, [64], 64, 0, 0, 9, **knew)


def test_who_came_and_went_and_what_decided_is_read_as_it_was_written(tmp_path):
    came = Came("a", 999.5, 1000.0, 63, 4, [])
    step = a_step(came=[came], gone=[Gone("b", False, 3)], named=[["5ad9c770752d6fdd"]])
    rules = StepRules(16, True, {"admission": "preempt"})
    path = tmp_path / "passes.jsonl"
    writer = PassLog(path)
    writer.write(rules)
    writer.write(step)
    writer.close()
    assert read_step_rules(path) == rules
    assert read_step_rows(path) == [step]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("came", [{"request": "a"}]),
        ("came", ["a"]),
        ("gone", [{"request": "a", "ended": 1, "output_tokens": 3}]),
        ("named", ["a"]),
    ],
)
def test_who_came_or_went_in_another_form_is_refused_by_line(tmp_path, name, value):
    path = tmp_path / "passes.jsonl"
    writer = PassLog(path)
    writer.write(a_step(**{name: value}))
    writer.close()
    with pytest.raises(ValueError, match="line 1 is not of a pass log: it"):
        read_step_rows(path)


def test_a_log_without_what_decided_is_refused(log):
    with pytest.raises(ValueError, match="does not say what its engine decided by: an older"):
        read_step_rules(log(WARMUP))
