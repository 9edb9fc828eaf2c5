"""What a pass log of continuous batching says of its requests and of what its passes took."""

from dataclasses import asdict, replace

import pytest

from spyre_bench.metrics.served_steps import PREFIXES, read_served_steps
from spyre_bench.pass_log import Came, Gone, PassLog, ShapeWarmup, Step, StepRules
from spyre_bench.policy.continuous import RULES
from spyre_bench.shape_set import DecodeShape, PrefillShape

CHUNK, ROWS = PrefillShape(64, 128), DecodeShape(2, 128)
WARMUP = [
    ShapeWarmup(CHUNK, 5.0, 1.0, 1.0, False, 1),
    ShapeWarmup(ROWS, 4.0, 0.5, 0.5, True, 1),
    ShapeWarmup(DecodeShape(1, 128), 3.0, 0.25, 0.25, True, 1),
]
ZERO_S = 1_700_000_000.0


def came(request, at_s, prompt_tokens=10, max_tokens=8, prefixes=()):
    return Came(request, ZERO_S + at_s, ZERO_S + at_s, prompt_tokens, max_tokens, list(prefixes))


def step(kind, shape, start_s, seconds, contexts, **knew):
    tokens = [1] * len(contexts) if kind == "rows" else list(contexts.values())
    rows = [*contexts], tokens, 0, [*contexts.values()], max(contexts.values())
    named = [[] for _ in contexts]
    return Step(kind, shape, ZERO_S + start_s, seconds, *rows, 0, 0, 3, named=named, **knew)


STEPS = [
    step("chunk", CHUNK, 1.0, 2.0, {"a": 10}, came=[came("b", 0.5), came("a", 0.0, 10, 8)]),
    step("chunk", CHUNK, 3.0, 2.0, {"b": 12}),
    step("rows", ROWS, 5.0, 0.6, {"a": 11, "b": 13}, came=[came("never", 4.0)]),
    step("rows", ROWS, 6.0, 0.6, {"a": 12, "b": 14}, gone=[Gone("never", False, 0)]),
    step("rows", ROWS, 7.0, 0.6, {"b": 15}, gone=[Gone("a", True, 3)]),
]


@pytest.fixture
def log(tmp_path):
    def written(*steps, prefix_cache=False):
        path = tmp_path / "steps.jsonl"
        file = PassLog(path)
        for line in (*WARMUP, StepRules(5, prefix_cache, asdict(RULES)), *steps):
            file.write(line)
        file.close()
        return path

    return written


def test_requests_come_in_order_of_arrival_with_what_they_put_out(log):
    served = read_served_steps(log(*STEPS))
    assert served.workload.arrival_s.tolist() == [0.0, 0.5]
    assert served.workload.output_tokens.tolist() == [3, 4], "b's by the end of the log"
    assert served.workload.max_tokens.tolist() == [8, 8]
    assert served.gave_up == 1
    assert (len(served.steps), served.rules, served.prefix_cache) == (5, RULES, False)


def test_a_shape_costs_what_its_passes_took_and_one_that_never_ran_as_its_kind(log):
    served = read_served_steps(log(*STEPS))
    assert served.busy_s == pytest.approx(2 + 2 + 1 + 1 + 0.6)
    chunk, one_row, rows = served.costs.each
    assert chunk.full_s == pytest.approx(2.0)
    assert rows.full_s == pytest.approx(2.6 / 3), "vLLM's own time between passes costs time too"
    assert one_row.full_s == pytest.approx(0.25 * rows.full_s / 0.5)
    assert (chunk.compile_s, rows.compile_s) == (5.0, 0.0), (
        "a warm start says nothing of a cold one"
    )
    assert served.longer_than(served.costs) == pytest.approx(
        {"prefill 64,128": 1.0, "decode 2,128": 1.0}
    )
    assert served.costs.blocks == 5


def test_prompts_that_begin_alike_have_blocks_of_the_same_name(log):
    first, *others = STEPS
    named = replace(first, came=[came("b", 0.5, 70, 8, ["x"]), came("a", 0.0, 130, 8, ["x", "y"])])
    served = read_served_steps(log(named, *others, prefix_cache=True))
    assert served.prefix_cache
    assert served.workload.extras[PREFIXES].tolist() == [["x", "y"], ["x"]]


def test_a_log_of_an_older_server_or_without_an_answer_is_refused(log):
    with pytest.raises(ValueError, match=r"steps\.jsonl does not say when request b came"):
        read_served_steps(log(*STEPS[1:]))
    with pytest.raises(ValueError, match="no request put anything out"):
        read_served_steps(log(STEPS[0]))
