"""Decisions of continuous batching held against a pass log, by hand;
`tests/plugin/test_continuous_decisions` does it for hundreds of random runs of vLLM's scheduler."""

from dataclasses import asdict, replace

import pytest

from spyre_bench.pass_log import Came, Gone, PassLog, ShapeWarmup, Step, StepRules
from spyre_bench.policy.continuous import RULES
from spyre_bench.shape_set import DecodeShape, PrefillShape
from spyre_bench.validate.step_decisions import logged_decisions, step_decisions
from tests.simulate.test_continuous import costs

CHUNK, ROWS = PrefillShape(64, 256), DecodeShape(2, 256)
ZERO_S = 1000.0


def came(request, seen_s, prompt_tokens=10, max_tokens=8, prefixes=()):
    at_s = ZERO_S + seen_s
    return Came(request, at_s, at_s, prompt_tokens, max_tokens, list(prefixes))


def chunk(request, start_s, tokens=10, before=0, **knew):
    rows = [request], [tokens], 0, [before + tokens]
    knew = {"named": [[]]} | knew
    return Step("chunk", CHUNK, ZERO_S + start_s, 0.9, *rows, before + tokens, 0, 0, 9, **knew)


def rows(start_s, contexts, **knew):
    """A decode pass after which each request, by name, has so many tokens in its context."""
    of = list(contexts), [1] * len(contexts), 0, list(contexts.values())
    knew = {"named": [[] for _ in contexts]} | knew
    return Step("rows", ROWS, ZERO_S + start_s, 0.9, *of, max(contexts.values()), 0, 0, 9, **knew)


def ended(request, outputs):
    return Gone(request, True, outputs)


def hung_up(request):
    return Gone(request, False, 1)


def decided(*steps, blocks=None, **setting):
    return step_decisions(steps, RULES, costs(blocks=blocks), **setting)


ALONE = [
    chunk("a", 0.002, came=[came("a", 0.0)]),
    rows(1.0, {"a": 11}),
    rows(2.0, {"a": 12}),
]


def test_the_same_steps_at_their_times_agree_whatever_passes_took():
    found = decided(*ALONE, chunk("b", 9.003, came=[came("b", 9.0)], gone=[ended("a", 3)]))
    assert (found.agree, found.batches) == (True, 4)
    assert found.latest_s == pytest.approx(0.003)


def test_a_step_without_somebody_who_was_seen_in_time_is_another_decision():
    late = [replace(ALONE[1], came=[came("b", 0.5)]), ALONE[2]]
    found = decided(ALONE[0], *late)
    assert found.first_other == 2  # one decode pass between two chunks
    assert found.simulated.requests == ["b"]
    assert "pass 2 of 3 (counted from 0) differs: the server's decode 2,256 of a" in str(found)
    assert decided(ALONE[0], *late[:1], chunk("b", 2.0)).agree


def test_who_was_seen_with_a_step_is_seen_by_it_whatever_the_clock_says():
    new = replace(came("b", 0.0), seen_s=ZERO_S + 1.0001)
    assert decided(ALONE[0], replace(ALONE[1], came=[new]), chunk("b", 2.0)).agree


def test_a_start_that_is_late_is_no_agreement_even_with_the_same_steps():
    found = decided(*ALONE, chunk("b", 9.5, came=[came("b", 9.0)], gone=[ended("a", 3)]))
    assert found.same
    assert not found.agree


def test_who_hung_up_is_gone_in_the_next_step_and_gives_way():
    three = [came("a", 0.0), came("b", 0.0), came("c", 0.0)]
    begins = [chunk("a", 0.0, came=three), rows(1.0, {"a": 11}), chunk("b", 2.0)]
    gives_way = [rows(3.0, {"b": 11}, gone=[hung_up("a")]), chunk("c", 4.0)]
    assert decided(*begins, *gives_way).agree
    assert not decided(*begins, replace(gives_way[0], gone=[]), gives_way[1]).same


@pytest.mark.parametrize(("first_gone", "hit"), [("x", "y"), ("y", "x")])
def test_of_two_that_went_with_a_pass_the_prefix_of_the_first_dies_first(first_gone, hit):
    """Two blocks keep a prefix each; the next but one request takes one of them."""
    both = [came(name, 0.0, 65, 8, [name]) for name in "xy"]
    begins = [
        chunk("x", 0.0, 64, came=both),
        chunk("x", 1.0, 1, 64),
        rows(2.0, {"x": 66}),
        chunk("y", 3.0, 64),
        rows(4.0, {"x": 67}),
        chunk("y", 5.0, 1, 64),
        rows(6.0, {"x": 68, "y": 66}),
    ]
    gone = {"x": hung_up("x"), "y": ended("y", 2)}
    if first_gone == "y":
        gone["y"], gone["x"] = gone["y"], gone["x"]
    order = [gone[first_gone], gone[hit]]
    takes = chunk("z", 7.0, 64, came=[came("z", 7.0, 190, 2, ["p", "q"])], gone=order)
    again = came("w", 11.0, 65, 1, [hit])
    then = [
        chunk("z", 8.0, 64, 64),
        chunk("z", 9.0, 62, 128),
        rows(10.0, {"z": 191}),
        chunk("w", 11.0, 1, 64, came=[again], gone=[ended("z", 2)]),
    ]
    assert decided(*begins, takes, *then, blocks=5).agree
    assert decided(*begins, replace(takes, gone=order[::-1]), *then, blocks=5).first_other == 11


def test_an_answer_that_somebody_goes_on_with_is_known_by_its_names():
    asks = came("a", 0.0, 62, 8)
    steps = [
        chunk("a", 0.0, 62, came=[asks]),
        rows(1.0, {"a": 63}),
        rows(2.0, {"a": 64}, named=[["n"]]),
        chunk("b", 3.0, 2, 64, came=[came("b", 2.5, 66, 1, ["n"])]),
    ]
    assert decided(*steps).agree
    assert not decided(*steps[:2], rows(2.0, {"a": 64}), steps[3]).same
    assert not decided(*steps, prefix_cache=False).same


def test_a_log_that_does_not_say_who_came_or_whose_clock_was_set_back_is_refused():
    with pytest.raises(ValueError, match="does not say when request a came: an older server"):
        decided(rows(0.0, {"a": 11}))
    with pytest.raises(ValueError, match="clock was set back"):
        decided(ALONE[0], ALONE[2], ALONE[1])


def test_a_log_says_all_that_is_needed(tmp_path):
    path = tmp_path / "passes.jsonl"
    writer = PassLog(path)
    for shape in (ROWS, CHUNK):
        writer.write(ShapeWarmup(shape, 1.0, 4.0, 4.0, False, 1))
    writer.write(StepRules(9, True, asdict(RULES)))
    for step in ALONE:
        writer.write(step)
    writer.close()
    assert logged_decisions(path).agree
