"""What a check of the simulator is made of; `tests/notebooks` runs one on a real server."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spyre_bench.cost.bucket_cost import BucketCost
from spyre_bench.metrics import waste
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import Bucket, BucketSet
from spyre_bench.simulate.static import simulate
from spyre_bench.validate import check, static
from spyre_bench.validate.registered import Prediction
from spyre_bench.validate.static import BatchConstants, pass_costs
from spyre_bench.workload.workload import Workload

SMALL = BucketCost(Bucket(4, 64, 16), 0.5, 0.04)
LARGE = BucketCost(Bucket(2, 128, 32), 0.7, 0.03)
COSTS = (LARGE, SMALL)
BUCKETS = BucketSet((SMALL.bucket, LARGE.bucket))


def workload(*rows) -> Workload:
    arrival_s, prompt_tokens, output_tokens = map(np.array, zip(*rows, strict=True))
    return Workload("some", arrival_s.astype(float), prompt_tokens, output_tokens, output_tokens)


def passes(*rows) -> pd.DataFrame:
    """batch, bucket, kind, start_s"""
    return pd.DataFrame(rows, columns=["batch", "bucket", "kind", "start_s"])


LOG = passes(
    (0, "2,128,32", "prefill", 0.0),
    (0, "2,128,32", "decode", 0.7),
    (0, "2,128,32", "decode", 0.8),
    (0, "2,128,32", "decode", 0.95),  # nothing of its batch follows
    (1, "2,128,32", "prefill", 9.0),
    (1, "2,128,32", "decode", 9.9),
)


def test_a_pass_lasts_until_the_next_one_of_its_batch_starts():
    (cost,) = pass_costs(LOG)
    assert cost.bucket == LARGE.bucket
    assert cost.prefill_s == pytest.approx(0.8)  # the median of 0.7 and 0.9
    assert cost.decode_s == pytest.approx(0.125)  # of 0.1 and 0.15


def test_a_bucket_without_a_decode_pass_to_time_is_named():
    with pytest.raises(ValueError, match="bucket 2,128,32 ran no batch of three passes"):
        pass_costs(LOG.iloc[4:])


def test_full_batches_fill_every_bucket_one_after_the_other():
    requests = static.full_batches(COSTS)
    run = simulate(requests, COSTS, Policy(gather_s=0.02))
    batches = waste.batches(run)
    ran = list(batches[["bucket", "rows", "passes"]].itertuples(index=False, name=None))
    short = static.SHORT
    assert ran == [
        ("2,128,32", 2, 32),
        *[("2,128,32", 2, 2)] * short,
        ("4,64,16", 4, 16),
        *[("4,64,16", 4, 2)] * short,
    ]
    ends = batches["start_s"] + batches["seconds"]
    assert (batches["start_s"].values[1:] > ends.values[:-1]).all()  # on an idle engine


def test_everybody_of_a_queued_run_waits_while_the_first_one_runs():
    requests = static.queued(workload((0, 10, 5), (7, 20, 6), (9, 30, 7)), BUCKETS)
    assert requests.prompt_tokens.tolist() == [128, 10, 20, 30]
    assert requests.output_tokens.tolist() == [32, 5, 6, 7]
    assert requests.arrival_s[0] == 0
    assert requests.arrival_s[-1] < LARGE.batch_s(32)
    assert (np.diff(requests.arrival_s) > 0).all()


def test_only_what_a_bucket_takes_is_sent():
    requests = workload((0, 64, 16), (1, 65, 33), (2, 128, 32))
    assert static.fitting(requests, BUCKETS).prompt_tokens.tolist() == [64, 128]
    with pytest.raises(ValueError, match="no request of some fits the buckets"):
        static.fitting(workload((0, 129, 1)), BUCKETS)


def test_the_simulation_takes_the_times_of_the_clients_own_clock():
    requests = workload((0, 10, 5), (1, 20, 6), (1, 30, 7))
    sent = check.as_sent(requests, [100.0, 101.25, 101.125])
    assert sent.arrival_s.tolist() == [0, 1.25, 1.25]
    assert sent.prompt_tokens.tolist() == [10, 20, 30]


NOT_REGISTERED = Prediction(Path("none.json"), "", "", {}, {})


def check_of(requests: Workload, log: pd.DataFrame) -> check.Check:
    constants = BatchConstants(COSTS, COSTS, Policy(), client_overhead_s=0.01)
    return check.Check(
        "a run",
        constants,
        requests,
        {},
        {},
        constants.simulate(requests),
        log,
        NOT_REGISTERED,
        constants,
    )


def test_batches_agree_if_bucket_rows_and_order_do():
    requests = workload((0, 10, 5), (0, 20, 6), (0, 100, 7))
    log = passes((0, "4,64,16", "prefill", 0.0), (1, "2,128,32", "prefill", 1.0))
    same = log.assign(prompt_tokens=[[20, 10], [100]])
    assert static.simulated_batches(check_of(requests, same)) == [
        ("4,64,16", [10, 20]),
        ("2,128,32", [100]),
    ]
    assert static.batches_agree(check_of(requests, same))
    assert not static.batches_agree(check_of(requests, same.iloc[::-1]))
    assert not static.batches_agree(check_of(requests, log.assign(prompt_tokens=[[10], [100, 20]])))


def test_a_pass_is_held_against_the_constant_of_its_bucket_and_kind():
    errors = check.pass_errors(check_of(workload((0, 10, 5)), LOG))
    assert errors["error"].tolist() == pytest.approx([0, 0.1 / 0.03 - 1, 4, 0.9 / 0.7 - 1])
    assert set(errors["run"]) == {"a run"}


def test_a_server_decides_by_what_it_estimates_and_takes_what_its_passes_take():
    requests = workload((0, 10, 5))
    estimated = (BucketCost(LARGE.bucket, 0.1, 0.03), BucketCost(SMALL.bucket, 0.2, 0.04))
    constants = BatchConstants(COSTS, estimated, Policy(), client_overhead_s=0.25)
    trace = constants.simulate(requests)
    assert trace.costs[trace.passes.shape[0]].bucket == LARGE.bucket  # SMALL would be faster
    assert trace.passes.batch_seconds[0] == pytest.approx(0.7 + 4 * 0.03)
    assert trace.client_overhead_s == 0.25
