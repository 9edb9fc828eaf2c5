"""From a log to better buckets: what is said of today's, whether savings come true, and that a
server reads the file back."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spyre_bench.choose.optimize import Limits
from spyre_bench.cost.bucket_cost import price
from spyre_bench.cost.source import load_cost
from spyre_bench.metrics import summary
from spyre_bench.metrics.served import Served, read_served
from spyre_bench.policy.static import Policy
from spyre_bench.shapes import Bucket, BucketSet
from spyre_bench.simulate.static import simulate
from spyre_bench.studies.tune import Tuning, of_log, tune
from spyre_bench.workload.workload import Workload
from tests.validate.machine import Machine

POLICY = Policy(gather_s=0.02)
OTHER = Bucket(2, 256, 64)
BAD = (Bucket(1, 512, 256), Bucket(1, 1024, 64))
EPOCH_S = 1_700_000_000.0


def requests(seed: int, count: int = 80, rps: float = 0.5) -> Workload:
    rng = np.random.default_rng(seed)
    outputs = rng.integers(4, 40, count)
    prompts = rng.integers(20, 250, count)
    arrival_s = np.cumsum(rng.exponential(1 / rps, count))
    return Workload("some", arrival_s - arrival_s[0], prompts, outputs, outputs)


def logged(path: Path, machine: Machine, workload: Workload) -> Path:
    """The pass log that a server of these costs leaves."""
    passes = machine.serve(workload, "log").passes.to_dict("records")
    lines = [
        {
            "kind": "warmup",
            "bucket": [*map(int, str(cost.bucket).split(","))],
            "prefill_compile_s": 2.0,
            "decode_compile_s": 3.0,
            "prefill_s": cost.prefill_s,
            "decode_s": cost.decode_s,
            "was_warm": False,
            "graphs": 2,
        }
        for cost in machine.costs
    ]
    for row in passes:
        times = {name: [EPOCH_S + at_s for at_s in row[name]] for name in ("arrival_s", "seen_s")}
        names = [f"r{place}" for place in row["prompt_tokens"]]
        del row["measured_at"]
        row["bucket"] = [*map(int, row["bucket"].split(","))]
        lines.append(row | times | {"start_s": EPOCH_S + row["start_s"], "requests": names})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def machine(seed: int, buckets, **walk: float) -> Machine:
    """1.3 times as slow as the table that ships, and no bucket quite as that has it."""
    table = load_cost()
    costs = price(buckets, table)
    draw = next(iter(table.spread(costs).draws(20, seed)))
    return Machine([cost.scaled((1.3, 1.3)) for cost in draw.scaled(costs)], POLICY, **walk)


def test_a_log_gives_back_its_requests_its_costs_and_its_seconds(tmp_path):
    host = machine(0, BAD, drift=0.0, batch=0.0, step=0.0)
    workload = requests(0)
    served = read_served(logged(tmp_path / "passes.jsonl", host, workload))
    assert served.workload.prompt_tokens.tolist() == workload.prompt_tokens.tolist()
    assert served.workload.output_tokens.tolist() == workload.output_tokens.tolist()
    assert served.workload.arrival_s == pytest.approx(workload.arrival_s, abs=1e-5)
    ran = summary.busy_s(simulate(workload, host.costs, POLICY))
    assert served.busy_s == pytest.approx(ran, rel=0.01)
    first = served.costs[0]
    assert first.bucket == BAD[0]
    assert first.decode_s == pytest.approx(host.costs[0].decode_s, rel=0.02)
    assert first.compile_s == 5.0
    assert served.drift == pytest.approx(0, abs=1e-3)


def tuned(served: Served, **limits):
    model = of_log(served, load_cost(), POLICY)
    return tune(
        served.workload,
        model,
        price((cost.bucket for cost in served.costs), model),
        Limits(3, **limits),
        batch_sizes=(1, 2, 4),
        policy=POLICY,
        measured_busy_s=served.busy_s,
        replications=40,
    )


def saved_after_restart(folder: Path, seed: int) -> tuple[float, Tuning]:
    """Traffic on bad shapes, tune, restart, the same traffic, on a machine that drifts: the share
    of the seconds that is gone, and what was said of it before."""
    walk = {"drift": 0.02, "batch": 0.02, "step": 0.02}
    before = machine(seed, BAD, **walk)
    served = read_served(logged(folder / f"{seed}.jsonl", before, requests(seed)))
    tuning = tuned(served)
    buckets = tuple(dict.fromkeys((*BAD, *tuning.new.compiled)))
    truth = {cost.bucket: cost for cost in machine(seed, buckets, **walk).costs}
    after = Machine([truth[b] for b in sorted(tuning.new.compiled)], POLICY, seed=99, **walk)
    again = read_served(logged(folder / f"{seed}-after.jsonl", after, requests(seed)))
    return 1 - again.busy_s / served.busy_s, tuning


def test_a_saving_comes_true_within_its_interval(tmp_path):
    saved, tuning = saved_after_restart(tmp_path, seed=0)
    assert saved > 0.1
    assert tuning.saving.low <= saved <= tuning.saving.high
    assert not tuning.keeps


@pytest.mark.loop
def test_savings_come_true_as_often_as_their_intervals_say(tmp_path):
    found = [saved_after_restart(tmp_path, seed) for seed in range(10)]
    assert min(saved for saved, _ in found) > 0.1
    held = sum(tuning.saving.low <= saved <= tuning.saving.high for saved, tuning in found)
    assert held >= 8, "of ten intervals from P5 to P95"
    assert sum(not tuning.keeps for _, tuning in found) >= 9


def test_good_buckets_are_kept_and_the_file_has_them(tmp_path):
    host = machine(0, BAD, drift=0.0)
    workload = requests(0)
    first = tuned(read_served(logged(tmp_path / "bad.jsonl", host, workload)))
    assert not first.keeps
    good = machine(0, first.new.compiled, drift=0.0)
    second = tuned(read_served(logged(tmp_path / "good.jsonl", good, workload)))
    assert second.keeps
    assert second.verdict.startswith("keep your buckets")
    assert second.advised.compiled == first.new.compiled


def test_others_compile_in_proportion_to_what_the_logged_start_took(tmp_path):
    def compile_s(compiles: float) -> float:
        """Of a bucket that did not run."""
        served = read_served(logged(tmp_path / "log.jsonl", machine(0, BAD), requests(0)))
        costs = tuple(replace(it, compile_s=it.compile_s * compiles) for it in served.costs)
        return of_log(replace(served, costs=costs), load_cost(), POLICY).of(OTHER).compile_s

    assert compile_s(3.0) == pytest.approx(3 * compile_s(1.0))
    assert compile_s(0.0) == load_cost().of(OTHER).compile_s, "a warm start says nothing of it"


def test_too_few_requests_to_choose_by_are_refused():
    table = load_cost()
    with pytest.raises(ValueError, match="has 5 requests: 20 or more are needed"):
        tune(requests(0, count=5), table, (), Limits(2), batch_sizes=(1, 2))


def test_what_today_and_others_share_cancels_in_the_interval():
    table = load_cost()
    workload = requests(1)

    def with_today(buckets):
        settings = {"batch_sizes": (1, 2), "policy": POLICY, "replications": 20}
        return tune(workload, table, price(buckets, table), Limits(2), **settings)

    found = with_today(BAD)
    again = with_today(found.new.compiled)
    assert found.saving.sure
    assert again.keeps
    assert again.saving.low == again.saving.point == again.saving.high == 0


def test_the_file_is_read_wherever_buckets_are(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps({"buckets": [[4, 64, 32], [2, 256, 64]], "tuned": {"log": "x"}}))
    assert str(BucketSet.parse(f"@{path}")) == "2,256,64 4,64,32"
    path.write_text("[[4, 64, 32]]")
    assert str(BucketSet.parse(f"@{path}")) == "4,64,32"
    for text, words in (
        ("{}", "it holds no list of buckets"),
        ("x", "not JSON"),
        ("[[4, 65, 32]]", "prompt_length 65 is not a positive multiple"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            BucketSet.parse(f"@{path}")
    with pytest.raises(ValueError, match=r"buckets @/nowhere/x\.json: No such file"):
        BucketSet.parse("@/nowhere/x.json")


def test_a_saving_too_small_to_matter_is_said_to_be_that_with_the_threshold():
    import dataclasses

    from spyre_bench.studies.tune import Saving

    some, today = requests(3), price(BucketSet.parse("4,256,64"), load_cost())
    tuning = tune(some, load_cost(), today, Limits(2), batch_sizes=(1, 2, 4), replications=0)
    sure = dataclasses.replace(
        tuning, saving=Saving(0.02, 0.01, 0.03), saving_p95=Saving(0.01, 0.005, 0.02)
    )
    assert tuning.new.compiled != tuning.current.compiled
    assert sure.keeps
    assert sure.verdict.startswith("keep your buckets, it does not matter: others would save 2.0%")
    assert "below 3%" in sure.verdict
    waits = dataclasses.replace(
        tuning, saving=Saving(0.04, 0.03, 0.05), saving_p95=Saving(-0.4, -0.5, -0.3)
    )
    assert "device seconds fall by 4.0%" in waits.verdict
    assert waits.verdict.endswith("; P95 of E2EL grows by 40%")
    assert "P95 of E2EL grows" not in sure.verdict
    quicker = dataclasses.replace(sure, saving_p95=Saving(0.2, 0.1, 0.3))
    assert not quicker.keeps
    assert quicker.verdict.startswith("change")


def growing(count: int = 40) -> Workload:
    """Requests of which the second half asks for more than any of the first."""
    rng = np.random.default_rng(5)
    outputs = np.where(np.arange(count) < count // 2, 20, 40)
    prompts = rng.integers(60, 120, count)
    return Workload("growing", 2.0 * np.arange(count), prompts, outputs, outputs)


def against(today: str, some: Workload) -> Tuning:
    settings = {"batch_sizes": (1, 2), "policy": POLICY, "replications": 20}
    return tune(
        some, load_cost(), price(BucketSet.parse(today), load_cost()), Limits(2), **settings
    )


def test_nobody_is_refused_for_the_sake_of_a_saving():
    found = against("2,1280,256", growing())
    assert (found.current.rejected, found.new.rejected) == (0, 0)
    assert found.saving.sure
    assert found.verdict.startswith("change: device seconds fall by")


def test_where_today_refuses_requests_the_saving_is_of_those_that_it_serves():
    found = against("2,128,20", growing())
    assert found.current.rejected == 20
    assert found.held_out is None
    assert found.verdict.startswith("change: 20 of 40 requests are served that your buckets refuse")
    old_s, new_s = (
        summary.busy_s(simulate(growing().head(20), price(figures.compiled, load_cost()), POLICY))
        for figures in (found.current, found.new)
    )
    assert found.current.busy_s == pytest.approx(old_s)
    assert found.saving.point == pytest.approx(1 - new_s / old_s)


def test_buckets_that_serve_nobody_have_no_saving_and_go():
    found = against("1,64,8", growing())
    assert found.saving is None
    assert not found.keeps
    assert found.verdict.startswith("change: your buckets serve none of these 40 requests")
