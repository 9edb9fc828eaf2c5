"""The simulator of continuous batching: event logs by hand, and laws over random workloads."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyre_bench.cost.shape_cost import DecodeCost, PrefillCost, ShapeCosts
from spyre_bench.metrics.vllm_json import bench_result
from spyre_bench.policy.continuous import Decode, Prefill, Rules
from spyre_bench.policy.continuous import next_step as decide
from spyre_bench.shape_set import DecodeShape, PrefillShape, blocks_of
from spyre_bench.simulate import continuous
from spyre_bench.simulate.continuous import simulate
from spyre_bench.simulate.replicas import ROUTERS
from spyre_bench.simulate.result import LEFT, UNSERVED
from spyre_bench.workload.workload import Workload
from tests.policy import engine_host


def workload(*requests, limit=0):
    """Of (arrival_s, prompt tokens, output tokens), `limit` more tokens asked for."""
    arrival_s, prompts, outputs = map(np.array, zip(*requests, strict=True))
    return Workload("made", arrival_s.astype(float), prompts, outputs, outputs + limit)


def costs(chunk=64, rows=2, context=256, blocks=None, slot_s=0.0):
    """A chunk takes 4 s; a decode pass 1 s, half a second more for each live row."""
    return ShapeCosts(
        (PrefillCost(PrefillShape(chunk, context), 4.0, slot_s),),
        (DecodeCost(DecodeShape(rows, context), 1.0, 0.5, slot_s),),
        blocks or rows * context // 64 + 1,
    )


def log(run):
    """Each row of passes: shape, start, seconds of one, how many, members."""
    p = run.passes
    names = [run.shapes[shape].replace(",256", "") for shape in p.shape]
    members = [p.of_row(row)[0].tolist() for row in range(len(p))]
    return list(
        zip(names, p.start_s.tolist(), p.seconds.tolist(), p.count.tolist(), members, strict=True)
    )


def test_who_arrives_in_a_stretch_is_admitted_after_the_pass_that_runs():
    run = simulate(workload((0, 10, 9), (7, 70, 2)), costs())
    assert log(run) == [
        ("prefill 64", 0.0, 4.0, 1, [0]),
        ("decode 2", 4.0, 1.5, 2, [0]),  # the second ends at 7, when the other is there
        ("prefill 64", 7.0, 4.0, 1, [1]),
        ("decode 2", 11.0, 1.5, 1, [0]),  # one decode pass between two chunks
        ("prefill 64", 12.5, 4.0, 1, [1]),
        ("decode 2", 16.5, 2.0, 1, [0, 1]),
        ("decode 2", 18.5, 1.5, 4, [0]),
    ]
    times = run.requests
    assert times.start_s.tolist() == [0.0, 7.0]
    assert times.first_token_s.tolist() == [4.0, 16.5]
    assert times.finish_s.tolist() == [24.5, 18.5]
    assert times.tpot_s.tolist() == [20.5 / 8, 2.0]
    assert times.batch.tolist() == [0, 1]
    assert run.ttft_s.tolist() == [4.0, 9.5]
    assert run.passes.useful.tolist() == [10, 2, 64, 1, 6, 2, 4]
    assert run.passes.slots.tolist() == [64, 2, 64, 2, 64, 2, 2]
    assert run.passes.before.tolist() == [0, 10, 0, 12, 64, 13 + 70, 14]
    assert run.passes.waited_s.tolist() == [0, 0, 0, 4.0, 0, 4.0, 0, 0]


def test_a_stretch_takes_the_mean_of_its_growing_passes():
    run = simulate(workload((0, 10, 5)), costs(slot_s=0.25))
    assert log(run) == [
        ("prefill 64", 0.0, 4.0, 1, [0]),
        ("decode 2", 4.0, 1.5 + (11 + 12 + 13 + 14) / 16, 4, [0]),
    ]


def test_a_full_engine_is_not_interrupted_by_who_cannot_be_admitted():
    run = simulate(workload((0, 10, 4), (0, 10, 4), (9, 10, 1)), costs())
    assert [row[:4] for row in log(run)] == [
        ("prefill 64", 0.0, 4.0, 1),
        ("decode 2", 4.0, 1.5, 1),
        ("prefill 64", 5.5, 4.0, 1),
        ("decode 2", 9.5, 2.0, 2),
        ("prefill 64", 13.5, 4.0, 1),
        ("decode 2", 17.5, 1.5, 1),
    ]
    assert run.requests.finish_s.tolist() == [13.5, 19.0, 17.5]


def test_a_request_of_one_token_ends_with_its_prompt_and_a_longer_one_than_the_shapes_is_rejected():
    run = simulate(workload((0, 64, 1), (0, 256, 1), (0, 200, 100)), costs())
    assert len(run.passes) == 1
    assert run.requests.rejected.tolist() == [0, 1, 2]
    assert np.isnan(run.requests.tpot_s).all()
    assert run.requests.batch.tolist() == [0, -1, -1]


def test_where_nobody_may_be_admitted_the_reserved_blocks_say_so():
    two = workload((0, 10, 90), (0, 10, 90), limit=20)  # two blocks each, by max_tokens
    together = simulate(two, costs(context=128, blocks=5))
    alone = simulate(two, costs(context=128, blocks=4))
    assert together.requests.start_s[1] == 5.5
    assert alone.requests.start_s[1] == alone.requests.finish_s[0]


def test_a_common_prefix_is_computed_once():
    load = workload((0, 200, 2), (0, 200, 2), (0, 200, 2))
    run = simulate(load, costs(rows=3), prefixes=[["a", "b"], ["a", "b"], ["a"]])
    assert run.hit_tokens.tolist() == [0, 128, 64]
    prefill = run.passes.kind == 0
    assert run.passes.useful[prefill].sum() == 600 - 128 - 64
    assert run.passes.again.sum() == 0


def test_who_goes_on_with_an_answer_begins_with_its_blocks_once_they_are_complete():
    load = workload((0, 60, 40), (0, 130, 2), limit=20)  # of two and three blocks
    names = [["a"], ["a"]]  # which the first's answer completes with its fourth decode pass
    run = simulate(load, costs(blocks=5), prefixes=names)
    assert log(run)[:4] == [
        ("prefill 64", 0.0, 4.0, 1, [0]),
        ("decode 2", 4.0, 1.5, 1, [0]),
        ("decode 2", 5.5, 1.5, 3, [0]),
        ("prefill 64", 10.0, 4.0, 1, [1]),
    ]
    assert run.hit_tokens.tolist() == [0, 64]


def test_a_preempted_request_computes_again_and_its_client_waits_for_the_next_token():
    load = workload((0, 60, 120), (0, 60, 120))
    run = simulate(load, costs(context=192, blocks=5), Rules(admission="preempt"))
    assert run.passes.again.sum() > 0
    assert run.passes.outputs.sum() == 240
    assert run.passes.useful.sum() == 2 * 60 + 2 * 119
    assert run.requests.tpot_s[1] > run.requests.tpot_s[0]


def test_who_hangs_up_gives_its_blocks_back_with_the_end_of_the_pass_that_runs():
    load = workload((0, 10, 90), (0, 10, 90), (0, 10, 2), limit=20)  # two blocks each
    leaves_s = np.array([9.75, np.inf, np.inf])
    run = simulate(load, costs(context=128, blocks=4), leaves_s=leaves_s)
    assert log(run)[:4] == [
        ("prefill 64,128", 0.0, 4.0, 1, [0]),
        ("decode 2,128", 4.0, 1.5, 1, [0]),
        ("decode 2,128", 5.5, 1.5, 3, [0]),
        ("prefill 64,128", 10.0, 4.0, 1, [1]),
    ]
    assert run.requests.rejected.tolist() == [1 + UNSERVED.index(LEFT), 0, 0]
    assert np.isnan(run.requests.start_s).tolist() == [True, False, False]
    assert run.requests.batch.tolist() == [-1, 1, 2]
    assert bench_result(run, detailed=True)["itls"][0] == []


def test_who_hangs_up_in_the_queue_lets_those_behind_it_go_first():
    load = workload((0, 10, 4), (1, 200, 2), (2, 10, 2))
    leaves_s = np.array([np.inf, 3.0, np.inf])
    run = simulate(load, costs(rows=1), leaves_s=leaves_s)
    assert [members for *_, members in log(run)] == [[0], [0], [2], [2]]
    assert run.requests.start_s[2] == run.requests.finish_s[0]
    before = simulate(load, costs(rows=1), leaves_s=np.array([np.inf, 0.5, np.inf]))
    assert log(before) == log(run)  # nobody saw it


def test_who_hangs_up_with_the_very_end_of_its_last_pass_was_served():
    at_once = np.array([4.0])
    assert simulate(workload((0, 10, 1)), costs(), leaves_s=at_once).served.all()
    assert not simulate(workload((0, 10, 1)), costs(), leaves_s=at_once - 0.25).served.any()


def test_passes_end_when_a_servers_did_and_those_behind_take_their_cost():
    ends_s = np.array([5.0, 6.0, 8.0])
    run = simulate(workload((0, 10, 5)), costs(), ends_s=ends_s)
    assert log(run) == [
        ("prefill 64", 0.0, 5.0, 1, [0]),
        ("decode 2", 5.0, (3.0 + 2 * 1.5) / 4, 4, [0]),
    ]
    later = simulate(workload((0, 10, 4), (6, 10, 1), (7.5, 10, 1)), costs(), ends_s=ends_s)
    assert [row[:2] + row[4:] for row in log(later)] == [
        ("prefill 64", 0.0, [0]),
        ("decode 2", 5.0, [0]),
        ("prefill 64", 6.0, [1]),
        ("decode 2", 8.0, [0]),
        ("prefill 64", 9.5, [2]),
        ("decode 2", 13.5, [0]),
    ]


def test_who_is_read_late_is_served_late_and_as_old_as_it_is():
    run = simulate(workload((0, 10, 1)), costs(), seen_s=np.array([1.5]))
    assert run.requests.start_s.tolist() == [1.5]
    assert run.ttft_s.tolist() == [5.5]


def test_the_policy_decides_by_estimated_costs_and_passes_take_the_others():
    def two(first_s, second_s):
        """Costs of two decode shapes that both fit."""
        wide = DecodeCost(DecodeShape(2, 256), first_s), DecodeCost(DecodeShape(4, 256), second_s)
        return dataclasses.replace(costs(), decode=wide)

    run = simulate(workload((0, 10, 3)), two(1.0, 5.0), estimated=two(2.0, 1.0))
    assert log(run) == [("prefill 64", 0.0, 4.0, 1, [0]), ("decode 4", 4.0, 5.0, 2, [0])]
    with pytest.raises(ValueError, match="estimated costs are of other shapes than costs"):
        simulate(workload((0, 10, 3)), costs(), estimated=costs(rows=3))


def test_replicas_share_the_load_by_the_fewest_unfinished():
    load = workload((0, 10, 40), (1, 10, 1), (2, 10, 1), (20, 10, 1))
    dealt = simulate(load, costs(), replicas=2)
    routed = simulate(load, costs(), replicas=2, router="least_loaded")
    assert dealt.requests.replica.tolist() == [0, 1, 0, 1]
    assert routed.requests.replica.tolist() == [0, 1, 0, 1]
    later = workload((0, 10, 40), (1, 10, 1), (8, 10, 1))
    assert simulate(later, costs(), replicas=2).requests.replica.tolist() == [0, 1, 0]
    routed = simulate(later, costs(), replicas=2, router="least_loaded")
    assert routed.requests.replica.tolist() == [0, 1, 1]
    assert np.diff(routed.passes.batch).min() >= 0


def test_requests_wait_for_the_engine_to_be_ready_and_bad_settings_are_refused():
    run = simulate(workload((3, 10, 1)), costs(), ready_s=7.0)
    assert run.requests.first_token_s.tolist() == [14.0]
    with pytest.raises(ValueError, match="prefixes are of 2 requests and the workload has 1"):
        simulate(workload((3, 10, 1)), costs(), prefixes=[[], []])
    with pytest.raises(ValueError, match="router 'best' is not known"):
        simulate(workload((3, 10, 1)), costs(), router="best")
    with pytest.raises(ValueError, match="leaves_s are of 2 requests and the workload has 1"):
        simulate(workload((3, 10, 1)), costs(), leaves_s=np.zeros(2))
    with pytest.raises(ValueError, match="ends_s are of one engine and replicas is 2: use 1"):
        simulate(workload((3, 10, 1)), costs(), ends_s=np.array([5.0]), replicas=2)
    with pytest.raises(ValueError, match="ends_s do not ascend"):
        simulate(workload((3, 10, 1)), costs(), ends_s=np.array([5.0, 4.0]))


# --- laws

REQUESTS = st.lists(
    st.tuples(st.integers(0, 200), st.integers(1, 180), st.integers(1, 70)),
    min_size=1,
    max_size=12,
).map(sorted)
RULES = st.builds(
    Rules,
    decode_between=st.integers(0, 2),
    order=st.sampled_from(["arrival", "shortest_prefill"]),
    admission=st.sampled_from(["reserve", "preempt"]),
    layout=st.sampled_from(["ragged", "rectangular"]),
    over_limit=st.sampled_from(["pause", "hold"]),
    max_batch_context_tokens=st.sampled_from([None, 300, 500]),
    min_free_blocks=st.integers(0, 2),
)
SET = ShapeCosts(
    (PrefillCost(PrefillShape(64, 256), 1.0, 1 / 64), PrefillCost(PrefillShape(128, 256), 1.5)),
    (
        DecodeCost(DecodeShape(2, 256), 0.5, 0.25, 1 / 64),
        DecodeCost(DecodeShape(4, 128), 0.75, 0.25, 1 / 64),
    ),
    12,
)
SETS = st.sampled_from([SET, costs(rows=3), costs(rows=2, blocks=6, slot_s=1 / 64)])
# so many different first blocks; below 0 so many texts, of which each request is the beginning
PREFIXES = st.sampled_from([None, 2, 3, -1, -2])
STAY_S = st.lists(  # of each request, until its client hangs up
    st.one_of(st.just(math.inf), st.integers(0, 400).map(lambda n: n / 4)), min_size=12, max_size=12
)
ENDS_S = st.one_of(  # of passes
    st.none(),
    st.lists(st.integers(1, 40), max_size=80).map(lambda gaps: np.cumsum(gaps) / 8),
)


def expanded(run):
    """Every single pass and its members, and where each begins; in order of the replicas."""
    p = run.passes
    return [
        (int(p.replica[row]), int(p.shape[row]), p.of_row(row)[0].tolist())
        for row in np.argsort(p.replica, kind="stable")
        for _ in range(p.count[row])
    ]


def served(load, shapes, rules, kinds, **setting):
    return simulate(load, shapes, rules, prefixes=named(load, kinds), **setting)


def named(load, kinds):
    """See PREFIXES."""
    if kinds is None:
        return None
    prompts, ends = load.prompt_tokens, load.prompt_tokens + load.output_tokens
    if kinds > 0:  # a name for the first block of who has one
        return [[row % kinds][: n // 64] for row, n in enumerate(prompts.tolist())]
    return [[(row % -kinds, at) for at in range(n // 64)] for row, n in enumerate(ends.tolist())]


def leaving(load, stay_s):
    """When each client hangs up."""
    return load.arrival_s + np.array(stay_s[: len(load)])


@settings(max_examples=150, deadline=None)
@given(
    REQUESTS, RULES, SETS, PREFIXES, STAY_S, ENDS_S, st.integers(0, 100), st.sampled_from(ROUTERS)
)
def test_stretches_are_what_pass_by_pass_would_be(
    requests, rules, shapes, kinds, stay_s, ends_s, limit, router
):
    def one(*state):
        step = decide(*state)
        if isinstance(step, Decode):
            return step._replace(stable_for=1, alternates_for=0)
        return step._replace(goes_on=False) if isinstance(step, Prefill) else step

    load = workload(*requests, limit=limit)
    setting = {"replicas": 2 if ends_s is None else 1, "router": router, "ends_s": ends_s}
    setting["leaves_s"] = leaving(load, stay_s)
    long = served(load, shapes, rules, kinds, **setting)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continuous, "next_step", one)
        short = served(load, shapes, rules, kinds, **setting)
    assert expanded(long) == expanded(short)
    for field in dataclasses.fields(long.requests):
        if field.name not in ("batch",):
            ours, theirs = getattr(long.requests, field.name), getattr(short.requests, field.name)
            np.testing.assert_array_equal(ours, theirs)
    assert long.hit_tokens.tolist() == short.hit_tokens.tolist()


@settings(max_examples=100, deadline=None)
@given(REQUESTS, RULES, SETS, PREFIXES, STAY_S)
def test_every_request_gets_its_tokens_and_every_token_is_counted(
    requests, rules, shapes, kinds, stay_s
):
    load = workload(*requests)
    leaves_s = leaving(load, stay_s)
    run = served(load, shapes, rules, kinds, leaves_s=leaves_s)
    p, ok = run.passes, run.served
    left = run.requests.rejected == 1 + UNSERVED.index(LEFT)
    got = np.bincount(p.members, weights=p.tokens, minlength=len(load))
    assert (got[ok] == load.output_tokens[ok]).all()
    assert (got[~ok & ~left] == 0).all()
    assert (got[left] <= load.output_tokens[left]).all()
    assert (run.requests.finish_s[ok] <= leaves_s[ok]).all()
    assert (np.repeat(p.start_s, p.rows) < leaves_s[p.members]).all()
    computed = load.prompt_tokens + load.output_tokens - 1
    assert (run.hit_tokens[~ok & ~left] == 0).all()
    if rules.admission == "reserve" and not left.any():
        assert p.useful.sum() == (computed - run.hit_tokens)[ok].sum()
    assert (p.useful + p.again <= p.slots * p.count).all()
    assert (p.waited_s >= 0).all()
    ends = p.start_s + p.seconds * p.count
    assert (p.start_s[1:] >= ends[:-1] - 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(REQUESTS, RULES, SETS, PREFIXES)
def test_the_smallest_host_runs_the_same_steps(requests, rules, shapes, kinds):
    """All there at 0, so that the host's lack of a clock does not matter."""
    load = workload(*[(0, prompt, outputs) for _, prompt, outputs in requests])
    ok = load.prompt_tokens + load.max_tokens <= shapes.max_model_len
    if rules.order != "arrival":
        rules = dataclasses.replace(rules, max_age_s=0.0)
    host = engine_host.Host(shapes.shapes, rules)
    host.costs = shapes
    names = named(load, kinds) or [[] for _ in range(len(load))]
    for row in np.flatnonzero(ok):
        sizes = int(load.prompt_tokens[row]), *[int(load.output_tokens[row])] * 2
        request = engine_host.Request(row, *sizes, 0.0, [("p", name) for name in names[row]])
        host.add(request)
    theirs = []
    for step, _ in host.run():
        of = step.rows if isinstance(step, Decode) else [step.request]
        theirs.append((str(step.shape), [request.name for request in of]))
    names = [[("p", name) for name in some] for some in names]
    run = simulate(load, shapes, rules, prefixes=names)
    ours = [(run.shapes[shape].split()[1], members) for _, shape, members in expanded(run)]
    assert ours == theirs


def test_blocks_counted_and_blocks_named_give_the_same_steps():
    rng = np.random.default_rng(3)
    arrivals = np.sort(rng.integers(0, 900, 60))
    load = workload(*zip(arrivals, *rng.integers(1, 120, (2, 60)), strict=True), limit=10)
    shapes = costs(rows=4, blocks=9, slot_s=1 / 64)
    counted = simulate(load, shapes)
    named = simulate(load, shapes, prefixes=[[]] * 60)
    assert max(blocks_of(250) for _ in counted.passes.rows) * 4 > 8  # blocks are short
    assert log(counted) == log(named)
