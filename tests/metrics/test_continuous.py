"""Figures of runs of continuous batching: by hand, and laws."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings

from spyre_bench.metrics.bounds import bound_s, step_shares_s
from spyre_bench.metrics.latency import latencies
from spyre_bench.metrics.summary import busy_s, summary
from spyre_bench.metrics.vllm_json import bench_result
from spyre_bench.metrics.waste import ledger, paid
from spyre_bench.policy.continuous import Rules
from spyre_bench.policy.ledger import StepLedger
from spyre_bench.shape_set import DecodeShape, PrefillShape
from spyre_bench.simulate.continuous import simulate
from tests.simulate.test_continuous import (
    PREFIXES,
    REQUESTS,
    RULES,
    SETS,
    STAY_S,
    costs,
    leaving,
    served,
    workload,
)


def test_slots_of_chunks_and_decode_passes_are_useful_or_padding():
    run = simulate(workload((0, 70, 3)), costs(chunk=64, rows=4))
    assert ledger(run) == StepLedger(useful=70 + 2, chunk_pad=58, row_pad=2 * 3)
    assert ledger(run) == (
        StepLedger.of_chunk(PrefillShape(64, 256), 64)
        + StepLedger.of_chunk(PrefillShape(64, 256), 6)
        + StepLedger.of_decode(DecodeShape(4, 256), 1, passes=2)
    )


def test_seconds_are_paid_for_rows_that_are_there_and_for_the_others_part_of_an_empty_pass():
    run = simulate(workload((0, 48, 3)), costs(chunk=64, rows=4))
    # a chunk of 4 s, a quarter of it padding; two passes of 1 s for four rows and 0.5 s for the one
    assert asdict(paid(run)) == {
        "useful_s": 3 + 2 * (0.25 + 0.5),
        "chunk_pad_s": 1.0,
        "again_s": 0.0,
        "row_pad_s": 2 * 0.75,
        "shape_pad_s": 0.0,
    }


def test_the_bound_is_chunks_nobody_shares_and_parts_of_full_passes():
    load = workload((0, 70, 3), (0, 300, 1))
    shares = step_shares_s(load, costs(chunk=64, rows=4, slot_s=0.25))
    chunks = 2 * 4.0 + 0.25 * sum(range(1, 7)) / 64  # before token 65 stands at least 1, ...
    assert shares.tolist() == [chunks + 2 * (0.25 + 0.5) + 0.25 * (71 + 72), np.inf]


def test_a_summary_and_a_result_say_what_ran_in_each_shape():
    run = simulate(workload((0, 70, 3), (0, 70, 1)), costs(chunk=64, rows=4), prefixes=[["a"]] * 2)
    row, result = summary(run), bench_result(run, detailed=True)
    assert row["hit_tokens"] == result["spyre_hit_tokens"] == 64
    assert row["batches"] == 2
    assert result["spyre_shape_hits"] == {"prefill 64,256": 3, "decode 4,256": 2}
    assert result["spyre_policy"]["admission"] == "reserve"
    assert row["paid_useful_s"] == pytest.approx(result["spyre_paid"]["useful_s"])
    assert result["itls"][1] == []
    assert sum(result["itls"][0]) == pytest.approx(run.e2el_s[0] - run.ttft_s[0])


@settings(max_examples=60, deadline=None)
@given(REQUESTS, RULES, SETS, PREFIXES, STAY_S)
def test_ledgers_close_and_no_batching_is_below_the_bound(requests, rules, shapes, kinds, stay_s):
    load = workload(*requests)
    run = served(load, shapes, rules, kinds, leaves_s=leaving(load, stay_s))
    slots, seconds = ledger(run), paid(run)
    assert slots.computed == (run.passes.slots * run.passes.count).sum()
    assert min(asdict(slots).values()) >= 0
    assert seconds.busy_s == pytest.approx(busy_s(run))
    assert min(asdict(seconds).values()) >= -1e-9
    assert bound_s(run) <= busy_s(run) * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(REQUESTS, RULES, SETS, PREFIXES)
def test_the_gaps_between_tokens_are_those_of_the_result(requests, rules, shapes, kinds):
    run = served(workload(*requests), shapes, rules, kinds)
    gaps = bench_result(run, detailed=True)["itls"]
    decoded = np.where(run.served, run.workload.output_tokens - 1, 0)
    assert [len(each) for each in gaps] == decoded.tolist()
    np.testing.assert_allclose(
        [sum(each) for each in gaps], np.where(run.served, run.e2el_s - run.ttft_s, 0), atol=1e-9
    )
    every = np.concatenate([[0.0][:0], *gaps])
    if len(every):
        assert latencies(run)["itl"].mean_ms == pytest.approx(every.mean() * 1e3)


def test_a_preempted_requests_wait_is_a_gap_between_its_tokens():
    load = workload((0, 60, 120), (0, 60, 120))
    run = simulate(load, costs(context=192, blocks=5), Rules(admission="preempt"))
    gaps = bench_result(run, detailed=True)["itls"]
    assert [len(each) for each in gaps] == [119, 119]
    assert max(gaps[1]) * 1e3 == pytest.approx(latencies(run, (100,))["itl"].percentiles_ms[100])
    assert ledger(run).again > 0


def test_a_gap_counts_though_the_preempted_was_admitted_again_at_once():
    load = workload((0, 121, 9), (0, 121, 9))
    rules = Rules(admission="preempt", decode_between=0)
    run = simulate(load, costs(blocks=6, slot_s=1 / 64), rules, prefixes=[["a"], ["b"]])
    assert len(run.passes.resumed)
    assert [len(each) for each in bench_result(run, detailed=True)["itls"]] == [8, 8]
