"""Advice on buckets: what it promises on paper, in the replay, and on requests it has not seen."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from spyre_bench.choose.advise import TIE, Beside, advise, of_tied, per_request, within
from spyre_bench.choose.optimize import Limits
from spyre_bench.cost.bucket_cost import CostModel, price
from spyre_bench.cost.closed_form import FittedCost
from spyre_bench.cost.measured import MeasuredCost
from spyre_bench.metrics import summary, waste
from spyre_bench.metrics.bounds import shape_bound_s
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import Bucket, BucketSet
from spyre_bench.simulate.static import simulate
from spyre_bench.workload.workload import Workload
from tests.cost.test_cost import CORNERS, machine

# prefill 0.02 + 1e-4·B·P, decode 0.02 + 5e-4·B, compile 10 s, a byte for each slot of the cache
TOY = FittedCost((0.02, 1e-4), (0.02, 5e-4, 0.0), (10.0, 0.0), (0.0, 1.0, 0.0))


def workload(*requests: tuple[float, int, int]) -> Workload:
    """Requests of (arrival_s, prompt_tokens, output_tokens)."""
    arrival_s, prompt_tokens, output_tokens = (np.array(c) for c in zip(*requests, strict=True))
    return Workload("by hand", arrival_s, prompt_tokens, output_tokens, output_tokens)


@pytest.fixture(scope="module")
def mixed() -> Workload:
    """400 requests all at once, mostly short prompts with short answers."""
    rng = np.random.default_rng(0)
    prompts = rng.choice([30, 60, 250, 900], 400, p=[0.5, 0.3, 0.15, 0.05])
    return workload(*zip(np.zeros(400), prompts, rng.integers(1, 60, 400), strict=True))


@pytest.fixture(scope="module")
def advice(mixed):
    return advise(mixed, TOY, Limits(4))


def test_what_runs_today_stays_where_a_change_makes_no_difference(mixed, advice):
    near = [replace(advice.buckets[0], new_tokens=64), *advice.buckets[1:]]
    kept = advise(mixed, TOY, Limits(4), today=near)
    frame = kept.contenders.set_index("name")
    assert frame["fitted_busy_s"]["today"] <= frame["fitted_busy_s"].min() * (1 + TIE)
    assert set(kept.buckets) == set(near)
    assert frame["kind"]["today"] == "today"
    assert kept.verdict.startswith("keep your buckets")


def test_that_it_does_not_matter_is_said_with_the_threshold(mixed, advice):
    slower = replace(TOY, prefill_s=(0.02, 1e-4 * (1 + TIE / 2)))

    class Today(CostModel):
        """The toy, and buckets of 61 new tokens that take a little longer."""

        def of(self, bucket):
            return (slower if bucket.new_tokens == 61 else TOY).of(bucket)

    near = [replace(bucket, new_tokens=61) for bucket in advice.buckets]
    kept = advise(mixed, Today(), Limits(4), today=near)
    assert set(kept.buckets) == set(near)
    assert kept.verdict.startswith("keep your buckets, it does not matter: ")
    assert "below 3% costs are not known well enough to tell" in kept.verdict


def test_what_runs_today_goes_where_it_is_worse_or_takes_fewer_requests(mixed):
    worse = advise(mixed, TOY, Limits(4), today=[Bucket(1, 960, 64)])
    assert Bucket(1, 960, 64) not in worse.buckets
    assert not worse.verdict.startswith("keep")
    short = advise(mixed, TOY, Limits(4), today=[Bucket(8, 64, 64)])
    assert short.contenders.set_index("name")["fitted_rejected"]["today"] > 0
    assert Bucket(8, 64, 64) not in short.buckets or len(short.buckets) > 1


# --- what is promised -----------------------------------------------------------------------------


def test_the_advised_buckets_take_every_request_of_the_half_they_were_fitted_on(advice):
    requests = advice.fitted
    buckets = BucketSet(advice.buckets)
    assert len(buckets) <= 4
    assert all(
        buckets.fitting(*row)
        for row in zip(requests.prompt_tokens, requests.max_tokens, strict=True)
    )
    assert advice.contenders.set_index("advised").loc[True, "fitted_rejected"] == 0


def test_the_set_with_fewest_busy_seconds_is_advised_and_of_ties_the_one_that_compiles_least(
    advice,
):
    frame = advice.contenders
    assert frame["advised"].sum() == 1
    chosen = frame[frame["advised"]].iloc[0]
    tied = frame[frame["fitted_busy_s"] <= frame["fitted_busy_s"].min() * (1 + TIE)]
    assert chosen["fitted_busy_s"] in tied["fitted_busy_s"].tolist()
    assert chosen["compile_s"] == tied["compile_s"].min()
    assert BucketSet.parse(chosen["buckets"]) == BucketSet(advice.buckets)


def test_no_set_is_better_in_everything_than_the_advised_one(advice):
    frame = advice.contenders
    figures = ["fitted_busy_s", "compile_s"]
    chosen = frame[frame["advised"]].iloc[0]
    better = (frame[figures] <= chosen[figures]).all(axis=1)
    strictly = (frame[figures] < chosen[figures]).any(axis=1)
    assert not (better & strictly).any()


def test_buckets_that_hardly_help_are_not_paid_for():
    alike = workload(*[(5.0 * n, 60 + n % 2 * 10, 2) for n in range(240)])
    flat = FittedCost((0.02, 1e-7), (0.02, 5e-4, 0.0), (10.0, 0.0), (0.0, 1.0, 0.0))
    found = advise(alike, flat, Limits(3), batch_sizes=(1,))
    frame = found.contenders
    assert frame["graphs"].max() > 1, "there was a choice"
    assert frame.loc[frame["advised"], "graphs"].item() == frame["graphs"].min()


def test_the_verdict_names_a_tie_a_loss_on_the_second_half_and_too_few_requests(advice):
    def with_figures(**figures):
        columns = {name: [*values] for name, values in figures.items()}
        frame = pd.DataFrame(
            {
                "name": ["optimum", "one shape"],
                "kind": ["ours", "baseline"],
                "fitted_rejected": 0,
                "held_out_rejected": 0,
                "fitted_bound_s": 1.0,
                "held_out_bound_s": 1.0,
                "held_out_saturated": False,
                **columns,
            }
        )
        return replace(advice, contenders=frame)

    tie = with_figures(
        advised=(False, True),
        fitted_busy_s=(100.0, 102.0),
        held_out_busy_s=(100.0, 100.0),
        compile_s=(810.0, 270.0),
    )
    assert tie.verdict.startswith(
        "one shape is within 2.0% of optimum and compiles 540 s less: at this load shapes hardly"
    )
    loss = with_figures(
        advised=(True, False),
        fitted_busy_s=(100.0, 200.0),
        held_out_busy_s=(100.0, 90.0),
        compile_s=(810.0, 270.0),
    )
    assert "optimum takes 50% fewer device seconds" in loss.verdict
    assert "on the second half one shape takes 10% less" in loss.verdict
    refuses = with_figures(
        advised=(True, False),
        fitted_busy_s=(100.0, 200.0),
        held_out_busy_s=(0.0, 90.0),
        held_out_rejected=(len(advice.held_out), 3),
        compile_s=(810.0, 270.0),
    )
    assert "it refuses 200 of the 200 requests of the second half" in refuses.verdict
    hopeless = with_figures(
        advised=(True, False),
        fitted_busy_s=(100.0, 200.0),
        held_out_busy_s=(100.0, 200.0),
        held_out_saturated=(True, True),
        compile_s=(810.0, 270.0),
    )
    assert "every set is saturated: requests come faster than one engine" in hopeless.verdict
    assert "saturated" not in loss.verdict
    busier = with_figures(
        advised=(True, False),
        fitted_busy_s=(100.0, 200.0),
        held_out_busy_s=(100.0, 10.0),
        held_out_rejected=(0, 150),
        compile_s=(810.0, 270.0),
    )
    assert "on the second half one shape takes" not in busier.verdict, "it has less to do"
    idler = with_figures(
        advised=(True, False),
        fitted_busy_s=(100.0, 60.0),
        held_out_busy_s=(100.0, 60.0),
        fitted_rejected=(0, 150),
        held_out_rejected=(0, 150),
        compile_s=(810.0, 270.0),
    )
    assert idler.verdict == (
        "optimum takes the fewest device seconds on the first half; "
        "one shape refuses 150 of the 200 requests of the first half"
    )
    few = replace(loss, fitted=loss.fitted.head(4), held_out=loss.held_out.head(4))
    assert "chosen by 4 requests, which say little of others" in few.verdict


def with_rates(advice, *rates, compile_s=(30.0, 10.0), later=None, advised=0):
    """The advice by goodput, between an optimum and one other set of these rates."""
    frame = pd.DataFrame(
        {
            "name": ["optimum", "powers of two"],
            "kind": ["ours", "baseline"],
            "advised": [place == advised for place in range(2)],
            "fitted_busy_s": [100.0, 50.0],
            "held_out_busy_s": [100.0, 50.0],
            "fitted_p95_e2el_s": [5.0, 9.0],
            "fitted_goodput_rps": rates,
            "held_out_goodput_rps": later or rates,
            "compile_s": compile_s,
            "held_out_rejected": 0,
            "held_out_saturated": False,
        }
    )
    return replace(advice, contenders=frame, objective="goodput")


def test_a_verdict_by_goodput_argues_by_goodput(advice):
    best = with_rates(advice, 0.4, 0.25).verdict
    assert "optimum serves 0.4 requests/s of the first half within the limits, the most" in best
    assert "powers of two, the next scheme of another stack, 0.25" in best
    assert "device seconds" not in best
    assert "on the second half" not in best, "which takes fewer seconds is another question"
    tie = with_rates(advice, 0.4, 0.395, advised=1).verdict
    assert "powers of two serves 0.395 requests/s" in tie
    assert "optimum 0.4 and compiles 20 s less, a tie" in tie
    luck = with_rates(advice, 0.4, 0.25, later=(0.2, 0.3)).verdict
    assert (
        "on the second half powers of two serves 0.3 requests/s within the limits, not 0.2" in luck
    )


def test_limits_that_nobody_meets_are_said_and_seconds_decide(mixed, advice):
    unmet = {"objective": "goodput", "goodput_ms": {"e2el": 1e-3}}
    found = advise(mixed, TOY, Limits(4), **unmet)
    assert not found.contenders["fitted_goodput_rps"].any()
    assert found.buckets == advice.buckets, "and not what compiles in least time"
    assert found.verdict == (
        "no set serves a request of the first half within the limits: device seconds decide; "
        + advice.verdict
    )


def test_compile_times_that_are_alike_decide_no_tie(advice):
    rows = pd.DataFrame({"compile_s": [27.0, 29.0, 60.0], "fitted_p95_e2el_s": [54.0, 48.0, 9.0]})
    assert of_tied(rows) == 1, "29 s are 27 s, and 60 s are not"
    assert of_tied(rows.assign(compile_s=[20.0, 29.0, 60.0])) == 0


def test_the_best_other_scheme_is_never_the_advised_one_and_a_loss_is_called_one():
    rows = {
        "name": ["optimum", "one shape", "percentiles"],
        "kind": ["ours", "baseline", "baseline"],
        "advised": [False, True, False],
        "held_out_busy_s": [2.2, 2.0, 2.5],
    }
    frame = pd.DataFrame(rows)
    won = Beside.of(frame)
    assert str(won) == "20% fewer device seconds than the best other scheme (percentiles)"
    assert won.unless == "passes of the advised set that take 25% longer than priced."
    lost = Beside.of(frame.assign(held_out_busy_s=[2.2, 2.5, 2.0]))
    assert str(lost) == "25% more device seconds than the best other scheme (percentiles)"
    assert "there percentiles takes fewer device seconds" in lost.unless
    even = Beside.of(frame.assign(held_out_busy_s=[2.2, 2.5, 2.502]))
    assert str(even) == "as many device seconds as the best other scheme (percentiles)"
    alone = Beside.of(frame.head(2))
    assert str(alone) == "2 device seconds per request; no other scheme is priced"
    assert "best other" not in alone.title


def test_a_row_says_what_simulating_its_buckets_on_each_half_gives(advice):
    for row in advice.contenders.itertuples():
        costs = price(BucketSet.parse(row.buckets), TOY)
        fitted, held_out = (simulate(half, costs) for half in (advice.fitted, advice.held_out))
        assert row.graphs == len(costs)
        assert row.compile_s == 10.0 * len(costs)
        assert row.fitted_busy_s == summary.busy_s(fitted)
        assert row.held_out_busy_s == summary.busy_s(held_out)
        assert row.held_out_bound_s == shape_bound_s(advice.held_out, costs)
        assert row.held_out_rejected == (~held_out.served).sum()
        assert row.held_out_fill == waste.ledger(held_out).fill


def test_no_set_is_busy_for_less_than_its_bound_and_ours_not_less_than_the_certificate(advice):
    frame = advice.contenders
    assert (frame["fitted_busy_s"] >= frame["fitted_bound_s"] * (1 - 1e-9)).all()
    assert (frame["held_out_busy_s"] >= frame["held_out_bound_s"] * (1 - 1e-9)).all()
    served_all = frame[frame["fitted_rejected"] == 0]
    assert (served_all["fitted_bound_s"] >= advice.certificate.bound_s * (1 - 1e-9)).all()
    assert advice.certificate.gap <= 1e-3


def test_the_second_half_does_not_change_the_advice(mixed, advice):
    first, _ = mixed.halves()
    other = replace(
        mixed,
        prompt_tokens=np.concatenate([first.prompt_tokens, np.full(200, 2000)]),
        output_tokens=np.concatenate([first.output_tokens, np.full(200, 1)]),
        max_tokens=np.concatenate([first.max_tokens, np.full(200, 1)]),
    )
    found = advise(other, TOY, Limits(4))
    assert found.buckets == advice.buckets
    assert found.contenders["fitted_busy_s"].equals(advice.contenders["fitted_busy_s"])
    assert (found.contenders["held_out_rejected"] == 200).all()


def test_a_covering_choice_takes_the_longest_of_the_second_half_and_looks_at_no_more_of_it():
    prompts = np.array([60, 200] * 20 + [60] * 37 + [900, 60, 700])
    outputs = np.array([10, 20] * 20 + [10] * 37 + [5, 50, 4])
    requests = workload(*zip(np.arange(80.0), prompts, outputs, strict=True))
    assert advise(requests, TOY, Limits(3)).contenders["held_out_rejected"].min() > 0
    covering = advise(requests, TOY, Limits(3), covering=True)
    assert not covering.contenders["held_out_rejected"].any()
    exceeded = replace(requests, prompt_tokens=np.where(prompts == 700, 60, prompts))
    assert advise(exceeded, TOY, Limits(3), covering=True).buckets == covering.buckets


def test_the_same_question_twice_has_the_same_answer(mixed, advice):
    again = advise(mixed, TOY, Limits(4))
    assert again.buckets == advice.buckets
    assert again.contenders.equals(advice.contenders)


# --- limits ---------------------------------------------------------------------------------------


def test_a_warmup_budget_is_kept_by_all_of_our_sets(mixed):
    found = advise(mixed, TOY, Limits(4, warmup_budget_s=25))
    ours = found.contenders[found.contenders["kind"] == "ours"]
    assert (ours["compile_s"] <= 25).all()
    assert sum(cost.compile_s for cost in found.costs) == 20


def test_smaller_batches_that_the_budget_does_not_allow_are_no_reason_to_give_up(mixed):
    """Compiling fewer rows need not be faster; the optimum is advised without its relatives."""

    class SlowToCompileOneRow(CostModel):
        def of(self, bucket: Bucket):
            compile_s = 100.0 if bucket.batch_size < 8 else 10.0
            return replace(TOY.of(bucket), compile_s=compile_s)

    found = advise(mixed, SlowToCompileOneRow(), Limits(4, warmup_budget_s=40))
    assert set(found.contenders.loc[found.contenders["kind"] == "ours", "name"]) == {"optimum"}


def test_memory_caps_our_buckets_and_shrinks_the_batch_of_the_baselines(mixed):
    longest = 960 + 59  # slots of a row of the longest baseline
    found = advise(mixed, TOY, Limits(4, memory_bytes=3 * longest))
    assert max(cost.memory_bytes for cost in found.costs) <= 3 * longest
    baselines = found.contenders[found.contenders["kind"] == "baseline"]
    rows = {bucket.batch_size for text in baselines["buckets"] for bucket in BucketSet.parse(text)}
    assert rows == {2}, "8 halved until three rows' worth of memory holds it"


def test_a_baseline_that_no_batch_of_one_fits_in_memory_is_left_out():
    # the exponential scheme rounds 700 up to 768, the others to 704
    requests = workload(*[(0.0, 700, 2)] * 4)
    found = advise(requests, TOY, Limits(2, memory_bytes=706), batch_sizes=(1, 2))
    names = set(found.contenders["name"])
    assert "exponential" not in names
    assert {"one shape", "percentiles"} <= names


# --- the objective --------------------------------------------------------------------------------

# a prefill of 0.5 + 0.5·B s at 64 tokens: two rows share a prefill of 1.5 s, one row needs 1 s
PAIRS = workload(*[(10.0 * pair, 64, 1) for pair in range(20) for _ in range(2)])
PREFILL = FittedCost((0.5, 0.5 / 64), (0.001, 0.0, 0.0))


def test_device_seconds_favour_the_shared_prefill_and_goodput_the_one_that_is_in_time():
    limits, sizes = Limits(1), (1, 2)
    shared = advise(PAIRS, PREFILL, limits, batch_sizes=sizes)
    assert shared.buckets == (Bucket(2, 64, 2),)
    in_time = advise(
        PAIRS, PREFILL, limits, batch_sizes=sizes, objective="goodput", goodput_ms={"ttft": 1200}
    )
    assert in_time.buckets == (Bucket(1, 64, 2),)
    by_name = in_time.contenders.set_index("name")
    # in 20 pairs of a half the first of each is in time; the last ends 2 s after its arrival
    assert by_name.loc["optimum, B ≤ 1", "fitted_goodput_rps"] == pytest.approx(10 / 92)
    assert by_name.loc["optimum", "fitted_goodput_rps"] == 0


def test_the_policy_is_the_one_asked_for(mixed):
    policy = Policy("fcfs")
    found = advise(mixed, TOY, Limits(2), policy=policy)
    assert found.contenders.loc[found.contenders["advised"], "fitted_busy_s"].item() == (
        summary.busy_s(simulate(found.fitted, found.costs, policy))
    )
    assert found.contenders["fitted_busy_s"].sum() > (
        advise(mixed, TOY, Limits(2)).contenders["fitted_busy_s"].sum()
    )


def test_seconds_a_request_are_of_those_that_were_served():
    longer = workload(*[(0.0, 60, 10)] * 200, *[(0.0, 60, 10)] * 150, *[(0.0, 600, 10)] * 50)
    found = advise(longer, TOY, Limits(2))
    frame = per_request(found)
    assert (frame["held_out_rejected"] == 50).all()
    busy_s = found.contenders["held_out_busy_s"]
    assert frame["held_out_busy_s"].tolist() == (busy_s / 150).tolist()
    assert frame["fitted_busy_s"].tolist() == (found.contenders["fitted_busy_s"] / 200).tolist()


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"objective": "speed"}, "objective 'speed' is not known: use device_seconds or goodput"),
        ({"objective": "goodput"}, "goodput needs an SLO"),
        ({"objective": "goodput", "goodput_ms": {"itl": 5}}, "no limit on 'itl'"),
        ({"objective": "goodput", "goodput_ms": {"ttft": 0}}, "ttft:0 is not above 0 milliseconds"),
        ({"limits": Limits(1, warmup_budget_s=5)}, "no choice of 1 buckets within a warmup budget"),
    ],
)
def test_what_makes_no_sense_is_refused(mixed, chosen, words):
    limits = chosen.pop("limits", Limits(1))
    with pytest.raises(ValueError, match=words):
        advise(mixed, TOY, limits, **chosen)


# --- where the cost table ends --------------------------------------------------------------------


def test_requests_beyond_the_table_are_left_out_unless_it_extrapolates():
    table = MeasuredCost(machine(*CORNERS))  # P to 1024, N to 512
    requests = workload((0.0, 1024, 512), (1.0, 1025, 2), (2.0, 10, 513), (3.0, 10, 10))
    assert within(requests, table).arrival_s.tolist() == [0.0, 3.0]
    assert within(requests, replace(table, extrapolate=True)) is requests
    with pytest.raises(ValueError, match="every request is beyond the cost table, which spans B 1"):
        within(requests.take(slice(1, 3)), table)


def test_a_table_that_begins_above_the_shortest_requests_serves_them_with_its_smallest():
    corners = [f"{b},{p},{n}" for b in (1, 8) for p in (128, 1024) for n in (32, 512)]
    requests = workload(*[(0.0, 20, 3), (0.0, 900, 400)] * 30)
    found = advise(requests, MeasuredCost(machine(*corners)), Limits(3))
    buckets = BucketSet.parse(" ".join(found.contenders["buckets"]))
    assert min(bucket.prompt_length for bucket in buckets) == 128
    assert min(bucket.new_tokens for bucket in buckets) == 32
    assert not any(cost.extrapolated for cost in found.costs)


def test_a_table_without_its_far_corner_still_advises_on_what_it_holds():
    corners = [text for text in CORNERS if not text.endswith("1024,512")]
    corners += ["1,1024,32", "8,1024,32"]
    requests = workload(*[(0.0, 60, 400), (0.0, 900, 10), (0.0, 60, 10)] * 10)
    found = advise(requests, MeasuredCost(machine(*corners)), Limits(3))
    assert not any(bucket.fits(900, 400) for bucket in found.buckets)
    assert not (found.contenders["kind"] == "baseline").any(), "all of theirs need that corner"
    assert (found.contenders["fitted_rejected"] == 0).all()


def test_a_batch_size_beyond_the_table_is_an_error_and_not_silently_dropped(mixed):
    with pytest.raises(ValueError, match=r"bucket 16,\d+,\d+ is outside of the cost table"):
        advise(mixed, MeasuredCost(machine(*CORNERS)), Limits(2), batch_sizes=(8, 16))
