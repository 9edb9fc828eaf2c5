"""Who runs next under continuous batching: the laws, and small logs by hand."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyre_bench.policy.continuous import (
    LOOK_AHEAD,
    Decode,
    Preempt,
    Prefill,
    Rules,
    require_every_request,
)
from spyre_bench.shape_set import ShapeSet, blocks_of
from tests.policy.engine_host import Host, Request

SHAPES = ShapeSet.parse("64,256 128,512", "2,512 4,256 8,128", blocks=40)


def log_of(host: Host) -> list[str]:
    """`p name tokens` a chunk (with ! at its end if it yields a token), `d names` a decode pass."""
    lines = []
    for step, _ in host.run():
        if isinstance(step, Prefill):
            lines.append(f"p {step.request.name} {step.tokens}{'!' if step.is_last else ''}")
        else:
            lines.append(f"d {''.join(row.name for row in step.rows)} {step.shape}")
    return lines


def test_chunks_and_decode_passes_take_turns_and_the_last_rows_go_on_alone():
    host = Host(SHAPES)
    host.add(Request("a", 100, 4, 4))
    host.add(Request("b", 200, 2, 2))
    assert log_of(host) == [
        "p a 100!",
        "d a 2,512",
        "p b 128",
        "d a 2,512",
        "p b 72!",
        "d ab 2,512",
    ]


def test_between_two_chunks_run_as_many_passes_as_asked_for():
    host = Host(SHAPES, Rules(decode_between=3))
    host.add(Request("a", 10, 9, 9))
    host.add(Request("b", 140, 1, 1))
    assert [line[0] for line in log_of(host)] == list("pdddpdddpdd")


@pytest.mark.parametrize(
    ("rules", "goes_on", "alternates_for"),
    [
        (Rules(), False, 7),  # from a context of 122 to 128, the end of the shape
        (Rules(decode_between=0), True, 0),
        (Rules(admission="preempt"), False, 0),  # its blocks may be gone
        (Rules(over_limit="hold"), False, 0),  # its last chunk may have to wait
    ],
)
def test_a_decision_says_how_long_chunks_and_passes_take_turns(rules, goes_on, alternates_for):
    host = Host(ShapeSet.parse("64,512", "2,128 2,512", blocks=40), rules)
    host.add(Request("a", 120, 90, 90))
    assert [host.step()[0].goes_on, host.step()[0].goes_on] == [
        rules.admission == "reserve" and rules.over_limit == "pause",  # nobody decodes yet
        False,  # it was the last
    ]
    host.add(Request("b", 320, 1, 1))
    steps = [host.step()[0] for _ in range(3)]
    (chunk, *_) = [step for step in steps if isinstance(step, Prefill)]
    assert chunk.goes_on == goes_on
    assert getattr(steps[-1], "alternates_for", 0) == alternates_for


def test_a_reserved_block_is_nobody_elses():
    host = Host(ShapeSet.parse("64,256", "4,256", blocks=6))
    host.add(Request("a", 64, 70, 128))  # three blocks
    host.add(Request("b", 64, 2, 128))  # three, and only two are left
    host.add(Request("c", 1, 1, 1))  # would fit, but nobody overtakes
    log = log_of(host)
    assert log.index("p b 64!") > log.index("p a 64!") + 60
    assert log.index("p b 64!") < log.index("p c 1!")


def test_where_blocks_run_out_the_newest_gives_its_own_back_and_computes_again():
    host = Host(ShapeSet.parse("64,256", "4,256", blocks=5), Rules(admission="preempt"))
    a, b = Request("a", 64, 100, 128), Request("b", 64, 100, 128)
    host.add(a)
    host.add(b)
    log_of(host)
    assert (a.done, b.done) == (100, 100)
    assert a.restarted == 0
    assert b.restarted > 0


@pytest.mark.parametrize(("prompt", "joins"), [(63, True), (64, False)])
def test_who_is_admitted_leaves_the_others_the_blocks_of_their_next_pass(prompt, joins):
    """Else it would be preempted at once, and computed again, and again."""
    rules = Rules(admission="preempt", decode_between=0)
    host = Host(ShapeSet.parse("64,128", "4,128", blocks=4), rules)
    host.add(Request("a", 64, 2, 2))  # one block, and one more in its next pass
    host.add(Request("b", prompt, 2, 2))  # of the two that are left; its own next token counts too
    b = "p b 63!" if joins else "p b 64!"
    alone = ["p a 64!", "d a 4,128", b, "d b 4,128"]
    assert log_of(host) == (["p a 64!", b, "d ab 4,128"] if joins else alone)


def test_a_prefill_that_runs_out_of_blocks_gives_its_own_back():
    host = Host(ShapeSet.parse("64,256", "4,256", blocks=6), Rules(admission="preempt"))
    host.add(Request("a", 61, 20, 20))  # takes its second block while b is prefilled
    host.add(Request("b", 255, 1, 1))
    log = log_of(host)
    assert [line for line in log if line[:3] == "p b"] == ["p b 64"] * 3 + ["p b 63!"]
    assert log[-2:] == ["d a 4,256", "p b 63!"]  # what it had stored is still cached


def test_rows_over_the_cards_limit_sit_out_in_turn():
    rules = Rules(max_batch_context_tokens=256, decode_between=0)
    host = Host(ShapeSet.parse("128,256", "4,256", blocks=20), rules)
    for name in "abc":
        host.add(Request(name, 100, 4, 4))
    passes = [line for line in log_of(host) if line.startswith("d")]
    assert passes[0] == "d bc 4,256"  # of equals the newest
    assert passes[1] == "d ac 4,256"  # who paused longest, then the newest


def test_holding_admits_nobody_who_would_exceed_the_limit_later():
    limit = Rules(max_batch_context_tokens=256, over_limit="hold")
    host = Host(ShapeSet.parse("64,256", "4,256", blocks=20), limit)
    host.add(Request("a", 60, 70, 70))
    host.add(Request("b", 60, 70, 70))  # 2 x 129 in the end
    assert all(len(step.rows) == 1 for step, _ in host.run() if isinstance(step, Decode))
    host = Host(ShapeSet.parse("64,256", "4,256", blocks=20), limit)
    host.add(Request("a", 60, 69, 69))
    host.add(Request("b", 60, 69, 69))  # 2 x 128
    assert any(len(step.rows) == 2 for step, _ in host.run() if isinstance(step, Decode))


@pytest.mark.parametrize(("outputs", "joins"), [(68, True), (69, False)])
def test_holding_asks_what_is_so_until_the_newcomer_ends(outputs, joins):
    """Its last token is never stored: 61 + 67 of the first, when both run for the last time."""
    limit = Rules(max_batch_context_tokens=256, over_limit="hold")
    host = Host(ShapeSet.parse("64,256", "4,256", blocks=20), limit)
    host.add(Request("a", 60, 150, 150))
    host.add(Request("b", 60, outputs, outputs))
    assert (log_of(host)[2] == "p b 60!") == joins


def test_holding_asks_the_shapes_in_a_rectangle_too():
    """The staircase has no shape of three rows that takes a long one."""
    shapes = ShapeSet.parse("128,512", "2,512 4,128", blocks=40)
    for outputs, joins in ((28, True), (30, False)):  # the last token is never stored
        host = Host(shapes, Rules(layout="rectangular", over_limit="hold"))
        for name in "abc":
            host.add(Request(name, 100, outputs, outputs))
        assert any(line.startswith("d abc") for line in log_of(host)) == joins


def test_the_shortest_prefill_goes_first_until_the_head_is_old():
    for max_age_s, first in ((60.0, "b"), (0.0, "a")):
        host = Host(SHAPES, Rules(order="shortest_prefill", max_age_s=max_age_s))
        host.add(Request("a", 200, 1, 1))
        host.add(Request("b", 20, 1, 1))
        assert log_of(host)[0].split()[1] == first


def test_the_shortest_prefill_is_found_among_so_many():
    for ahead, first in ((LOOK_AHEAD - 1, "short"), (LOOK_AHEAD, "0")):
        host = Host(SHAPES, Rules(order="shortest_prefill"))
        for name in range(ahead):
            host.add(Request(str(name), 200, 1, 1))
        host.add(Request("short", 20, 1, 1))
        assert host.decide().request.name == first


def test_who_would_raise_the_common_context_too_far_waits_for_those_who_decode():
    for most, joins in ((64, True), (63, False)):
        host = Host(SHAPES, Rules(layout="rectangular", max_raise_tokens=most))
        host.add(Request("a", 50, 4, 4))
        host.add(Request("b", 64, 4, 4))  # its first pass needs a second block
        log = log_of(host)
        assert any(line.startswith("d ab") for line in log) == joins


def test_the_common_context_is_that_of_the_next_pass():
    host = Host(SHAPES, Rules(layout="rectangular", max_raise_tokens=0, decode_between=0))
    host.add(Request("a", 64, 4, 4))  # begins its second block with it
    host.add(Request("b", 100, 4, 4))
    assert log_of(host)[:2] == ["p a 64!", "p b 100!"]


def test_an_idle_engine_leaves_no_block_free():
    host = Host(ShapeSet.parse("64,256", "4,256", blocks=5), Rules(min_free_blocks=4))
    host.add(Request("a", 200, 1, 20))
    assert log_of(host)[-1] == "p a 8!"


def test_blocks_that_admission_leaves_free_are_left_while_anybody_decodes():
    for least, joins in ((1, True), (2, False)):
        host = Host(ShapeSet.parse("64,256", "4,256", blocks=6), Rules(min_free_blocks=least))
        host.add(Request("a", 64, 4, 64))  # two of five blocks
        host.add(Request("b", 64, 4, 64))
        log = log_of(host)
        assert any(line.startswith("d ab") for line in log) == joins


def test_the_widest_of_those_who_decode_is_what_a_newcomer_raises():
    host = Host(SHAPES, Rules(layout="rectangular", max_raise_tokens=0))
    for name, prompt in (("a", 130), ("b", 10), ("c", 100)):
        host.add(Request(name, prompt, 9, 9))
    assert any(line.startswith("d abc") for line in log_of(host))


def test_what_the_prefix_cache_has_is_not_counted_as_prefill():
    host = Host(SHAPES, Rules(order="shortest_prefill"))
    host.add(Request("a", 193, 1, 1, prefixes=("x", "xy", "xyz")))
    log_of(host)
    host.add(Request("b", 100, 1, 1))
    host.add(Request("c", 193, 1, 1, prefixes=("x", "xy", "xyz")))
    assert host.decide().request.name == "c"


def test_a_pass_runs_in_the_cheapest_shape_that_covers_it():
    host = Host(ShapeSet.parse("64,512", "2,256 4,512", blocks=40))
    host.add(Request("a", 10, 3, 3))
    assert log_of(host) == ["p a 10!", "d a 2,256", "d a 2,256"]


def test_while_rows_are_paused_nobody_is_admitted():
    rules = Rules(max_batch_context_tokens=256, decode_between=0)
    host = Host(ShapeSet.parse("128,256", "4,256", blocks=20), rules)
    for name in "abc":
        host.add(Request(name, 100, 9, 9))
    for _ in range(4):
        host.step()
    host.add(Request("d", 10, 1, 1))
    assert isinstance(host.decide(), Decode)


def test_an_idle_engine_has_nothing_to_do():
    assert Host(SHAPES).decide() is None


def test_a_row_above_the_limit_by_itself_is_refused_with_a_sentence():
    host = Host(SHAPES, Rules(max_batch_context_tokens=64))
    host.add(Request("a", 64, 2, 2))
    host.step()
    with pytest.raises(ValueError, match="a context of 65 tokens is above what one row"):
        host.step()


prefill_shapes = st.sampled_from([(64, 128), (64, 256), (128, 256), (64, 512), (128, 512)])


@given(
    st.lists(prefill_shapes, min_size=1, max_size=3),
    st.sampled_from([128, 256, 320]),
    st.sampled_from(["ragged", "rectangular"]),
    st.sampled_from([None, 64, 128, 192, 512]),
    st.sampled_from([None, 100, 128, 255, 256, 320]),
)
def test_a_server_that_starts_takes_every_request_and_one_that_does_not_would_end(
    prefill, context, layout, chunk_tokens, limit
):
    shapes = ShapeSet.parse(prefill, [(4, context)], blocks=40)
    rules = Rules(layout=layout, chunk_tokens=chunk_tokens, max_batch_context_tokens=limit)
    longest = shapes.max_model_len

    def serves(prompt: int) -> bool:
        host = Host(shapes, rules)
        host.add(Request("a", prompt, longest - prompt, longest - prompt))
        try:
            log_of(host)
        except ValueError:
            return False
        return True

    if all(map(serves, range(1, longest))):
        require_every_request(shapes, rules)
    else:
        with pytest.raises(ValueError, match=r"raise it, or compile|lower chunk_tokens"):
            require_every_request(shapes, rules)


def test_the_only_request_cannot_give_its_blocks_to_itself():
    host = Host(ShapeSet.parse("64,256", "4,256", blocks=6), Rules(admission="preempt"))
    host.add(Request("a", 64, 2, 128))
    host.step()
    host.pool.take(host.pool.free_blocks)
    with pytest.raises(ValueError, match="the only running request needs more blocks"):
        host.step()


def test_a_chunk_that_no_shape_takes_is_refused_with_a_sentence():
    host = Host(SHAPES, Rules(layout="rectangular", chunk_tokens=256))
    host.add(Request("a", 256, 1, 1))
    with pytest.raises(
        ValueError, match="takes 256 tokens behind 0: compile a chunk of 256 tokens"
    ):
        host.step()


def test_a_last_chunk_may_be_one_token():
    host = Host(SHAPES)
    host.add(Request("a", 129, 1, 1))
    assert log_of(host) == ["p a 128", "p a 1!"]


def test_a_prefix_that_somebody_left_is_not_computed_again():
    host = Host(SHAPES)
    prefixes = ("x", "xy", "xyz")
    host.add(Request("a", 193, 1, 1, prefixes=prefixes))
    host.add(Request("b", 193, 1, 1, prefixes=prefixes))
    host.add(Request("c", 192, 1, 1, prefixes=prefixes))  # its last token is always computed
    assert log_of(host) == ["p a 128", "p a 65!", "p b 1!", "p c 64!"]


def test_a_rectangular_chunk_is_whole_so_a_hit_inside_is_computed_again():
    rules = Rules(layout="rectangular", chunk_tokens=128)
    host = Host(ShapeSet.parse("128,512", "4,512", blocks=40), rules)
    host.add(Request("a", 64, 1, 1, prefixes=("x",)))
    host.add(Request("b", 320, 1, 1, prefixes=("x",)))
    steps = [step for step, _ in host.run()]
    assert [(step.tokens, step.again_tokens) for step in steps] == [(64, 0), (128, 0), (128, 0)]
    host = Host(ShapeSet.parse("128,512", "4,512", blocks=40), rules)
    host.add(Request("a", 64, 1, 1, prefixes=("x",)))
    host.add(Request("b", 256, 1, 1, prefixes=("x",)))
    steps = [step for step, _ in host.run()]
    assert [(step.tokens, step.again_tokens) for step in steps] == [(64, 0), (64, 64), (128, 0)]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request("a", 500, 20, 20), "longer than the 512 tokens"),
        (Request("a", 200, 200, 200), "needs 7 blocks of 64 and an idle engine has 4"),
    ],
)
def test_what_can_never_run_is_refused_with_a_sentence(request_, said):
    shapes = replace(SHAPES, blocks=9)
    host = Host(shapes)
    host.pool.take(host.pool.free_blocks - 4)
    host.add(request_)
    with pytest.raises(ValueError, match=said):
        host.step()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"order": "fifo"}, "order 'fifo' is not known: use one of arrival"),
        ({"chunk_tokens": 100}, "chunk_tokens 100 is not a positive multiple of 64: use 128"),
        ({"decode_between": -1}, "decode_between -1 is below 0"),
        ({"max_batch_context_tokens": 0}, "max_batch_context_tokens 0 is below 1"),
        ({"decode_between": 1.5}, "decode_between 1.5 is not a whole number"),
        ({"chunk_tokens": "64"}, "chunk_tokens '64' is not a whole number"),
        ({"longest_first": "no"}, "longest_first 'no' is not true or false"),
    ],
)
def test_rules_that_cannot_be_are_refused(setting, said):
    with pytest.raises(ValueError, match=said):
        Rules(**setting)


requests = st.lists(
    st.tuples(
        st.integers(1, 250),  # prompt
        st.integers(1, 150),  # outputs
        st.integers(0, 100),  # what max_tokens is beyond
        st.integers(0, 60),  # arrival
        st.integers(0, 3),  # blocks of a prefix that it shares
    ),
    min_size=1,
    max_size=12,
)
rules = st.builds(
    Rules,
    decode_between=st.integers(0, 3),
    order=st.sampled_from(["arrival", "shortest_prefill"]),
    admission=st.sampled_from(["reserve", "preempt"]),
    layout=st.sampled_from(["ragged", "rectangular"]),
    over_limit=st.sampled_from(["pause", "hold"]),
    max_batch_context_tokens=st.sampled_from([None, 640, 1024]),
    max_age_s=st.sampled_from([0.0, 20.0, 60.0]),
    max_raise_tokens=st.sampled_from([None, 0, 64]),
    min_free_blocks=st.integers(0, 3),
    longest_first=st.booleans(),
)


def load(drawn) -> list[Request]:
    return [
        Request(
            str(place),
            prompt,
            outputs,
            outputs + beyond,
            arrival,
            prefixes=[("shared", index) for index in range(min(shared, prompt // 64))],
        )
        for place, (prompt, outputs, beyond, arrival, shared) in enumerate(drawn)
    ]


class LawfulHost(Host):
    """Looks at every decision, those behind which another one stands too."""

    fresh: Request | None = None  # admitted since the last decode pass

    def decide(self):
        step = super().decide()
        if isinstance(step, Prefill) and step.is_first:
            self.fresh, head = step.request, self.waiting[0]
            old = self.steps - head.arrival_s >= self.rules.max_age_s
            if old or self.rules.order == "arrival":
                assert step.request is head, "somebody was overtaken"
        elif isinstance(step, Decode):
            self.fresh = None
        elif isinstance(step, Preempt):
            assert step.request is self.running[-1], "not the newest"
            assert step.request is not self.fresh, "admitted for nothing"
        return step


def play(host: Host, drawn) -> list[tuple]:
    """Serves a load as it arrives, and looks at every law at every step."""
    to_come = sorted(load(drawn), key=lambda request: request.arrival_s)
    everybody = list(to_come)
    log = []
    while to_come or host.waiting or host.running:
        while to_come and to_come[0].arrival_s <= host.steps:
            host.add(to_come.pop(0))
        step, _ = host.step()
        if step is not None:
            log.append(describe(step))
            look_at(host, step)
        assert host.steps < 20_000, "somebody starves"
    assert [request.done for request in everybody] == [request.outputs for request in everybody]
    assert host.pool.free_blocks == host.costs.blocks - 1
    return log


def describe(step: Prefill | Decode) -> tuple:
    if isinstance(step, Prefill):
        return "p", step.request.name, step.tokens, step.again_tokens, step.shape
    return "d", tuple(row.name for row in step.rows), step.shape, step.context_tokens


def look_at(host: Host, step: Prefill | Decode) -> None:
    reserved = sum(request.reserved_blocks for request in host.running)
    if host.rules.admission == "reserve":
        assert reserved <= host.pool.free_blocks
    if isinstance(step, Prefill):
        assert step.shape.covers(step.tokens + step.again_tokens, step.request.computed_tokens)
    else:
        assert step.shape.covers(len(step.rows), step.context_tokens)
        limit = host.rules.max_batch_context_tokens
        assert limit is None or len(step.rows) * step.context_tokens <= limit
        assert all(row.computed_tokens <= step.context_tokens for row in step.rows)
    for request in host.running:
        assert request.paused_for < host.costs.max_rows
        assert not request.paused_for or host.rules.over_limit == "pause"
        assert len(request.table) >= blocks_of(request.computed_tokens)


@settings(max_examples=150, deadline=None)
@given(requests, rules, st.sampled_from([9, 14, 40]))
def test_nobody_starves_no_token_is_lost_and_no_shape_pool_or_limit_is_exceeded(
    drawn, rules, blocks
):
    play(LawfulHost(replace(SHAPES, blocks=blocks), rules), drawn)


@settings(max_examples=100, deadline=None)
@given(requests, rules, st.sampled_from([9, 14, 40]))
def test_a_decision_stays_right_for_as_long_as_it_says(drawn, rules, blocks):
    """`stable_for` passes in a row are what asking at each of them gives."""
    host = Host(replace(SHAPES, blocks=blocks), rules)
    for request in load(drawn):
        host.add(request)
    promised: list[tuple] = []
    context = 0
    while host.waiting or host.running:
        step, ended = host.step()
        if promised and not isinstance(step, Decode):
            raise AssertionError(f"promised {promised[0]}, got {describe(step)}")
        if promised:
            context += 1
            assert (describe(step)[1], step.shape) == promised.pop(0)
            assert step.context_tokens == context
        elif isinstance(step, Decode):
            promised = [(describe(step)[1], step.shape)] * (min(step.stable_for, 1000) - 1)
            context = step.context_tokens
        if ended:
            promised = []


@settings(max_examples=150, deadline=None)
@given(requests, rules, st.sampled_from([9, 14, 40]))
def test_chunks_and_passes_take_turns_for_as_long_as_a_decision_says(drawn, rules, blocks):
    """`goes_on` and `alternates_for` say what asking before every pass gives."""
    host = Host(replace(SHAPES, blocks=blocks), rules)
    for request in load(drawn):
        host.add(request)
    goes_on, passes, rows, shape = False, 0, (), None  # what was promised
    while host.waiting or host.running:
        since, newest = host.decodes_since_chunk, host.running[-1:]
        step, ended = host.step()
        if goes_on or (passes and since >= rules.decode_between):
            assert isinstance(step, Prefill)
            assert [step.request] == newest
        elif passes:
            assert isinstance(step, Decode)
            assert (step.rows, step.shape) == (rows, shape)
        if isinstance(step, Prefill):
            goes_on = step.goes_on
            passes = 0 if step.is_last else passes
        else:
            passes, rows, shape = max(1, passes, step.alternates_for) - 1, step.rows, step.shape
        if ended:
            goes_on, passes = False, 0


@settings(max_examples=50, deadline=None)
@given(requests, rules.filter(lambda rules: rules.order == "arrival"))
def test_equals_are_admitted_in_the_order_of_their_arrival(drawn, rules):
    host = Host(SHAPES, rules)
    log = play(host, drawn)
    arrivals = {request.name: request.arrival_s for request in load(drawn)}
    first = [name for kind, name, *_ in log if kind == "p"]
    admitted = list(dict.fromkeys(first))
    assert [arrivals[name] for name in admitted] == sorted(arrivals.values())


def test_a_pass_costs_the_same_time_however_many_wait():
    """Of a thousand waiting requests one is looked at."""
    host = Host(SHAPES)
    host.add(Request("a", 10, 5, 5))
    host.step()
    looked = itertools.count()

    def waiting():
        for request in [Request(str(i), 10, 5, 5) for i in range(1000)]:
            next(looked)
            request.pool = host.pool
            yield request

    host.waiting = waiting()
    host.decodes_since_chunk = 5
    host.decide()
    assert next(looked) == 1
