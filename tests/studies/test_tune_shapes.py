"""From a log of continuous batching to better shapes: whether a saving comes true, and that a
server reads the file back."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from spyre_bench.choose.advise_shapes import Engine
from spyre_bench.choose.visits import ShapeLimits
from spyre_bench.cli.main import app
from spyre_bench.cost.bucket_cost import CostModel
from spyre_bench.cost.rescaled import RescaledShapes
from spyre_bench.cost.source import SHAPES, load_cost
from spyre_bench.metrics.served_steps import ServedSteps, read_served_steps
from spyre_bench.pass_log import PassLog, ShapeWarmup, StepRules
from spyre_bench.shape_set import PrefillShape, ShapeSet
from spyre_bench.studies.tune import APART, Tuning, apart
from spyre_bench.studies.tune_shapes import of_log, tune_shapes
from spyre_bench.validate.continuous import fitting
from spyre_bench.workload.source import load_workload
from spyre_bench.workload.workload import Workload
from tests.validate.machine import PagedMachine

BAD = ShapeSet.parse("256,640", "8,640")


class Nothing(CostModel):
    """A source that has no figure for paged shapes."""

    def of(self, bucket):
        raise ValueError("no figure")


def requests(count: int = 60) -> Workload:
    rng = np.random.default_rng(0)
    drawn = load_workload("azure_conv", requests=count, rng=rng).scaled(0.12)
    return fitting(drawn, BAD).with_arrivals("poisson:0.7", rng)


def machine(shapes: ShapeSet, **setting) -> PagedMachine:
    """1.3 times as slow as the table that ships."""
    costs = load_cost(SHAPES).of_shapes(shapes)
    return PagedMachine(costs, [1.3] * len(costs.each), **setting)


def logged(
    path: Path,
    host: PagedMachine,
    workload: Workload,
    *,
    full_warmup: float = 1.0,
    compiling: float = 1.0,
) -> Path:
    """The pass log that a server of these costs leaves; full passes of its warmup, and its
    compiling, took so many times as long."""
    log = PassLog(path)
    for cost in host.costs.each:
        is_chunk = isinstance(cost.shape, PrefillShape)
        empty_s = cost.pass_s(0) if is_chunk else cost.pass_s(1, 1)
        full_s = cost.full_s * full_warmup
        compile_s = cost.compile_s * compiling
        log.write(ShapeWarmup(cost.shape, compile_s, full_s, empty_s, False, 1))
    log.write(StepRules(host.costs.blocks, False, asdict(host.rules)))
    for step in host.serve(workload, "log").passes:
        log.write(step)
    log.close()
    return path


def tuned(served: ServedSteps, graphs: int = 5) -> Tuning:
    model = of_log(served, load_cost(SHAPES))
    engine = Engine(8, 256, served.costs.blocks)
    return tune_shapes(served, model, ShapeLimits(graphs), engine, replications=20)


def test_a_saving_comes_true_within_its_interval_after_a_restart(tmp_path):
    before = read_served_steps(logged(tmp_path / "bad.jsonl", machine(BAD, drift=0.0), requests()))
    tuning = tuned(before)
    assert not tuning.keeps
    assert tuning.current.busy_s == pytest.approx(before.busy_s, rel=0.02)
    after = machine(tuning.advised.compiled, drift=0.0)
    again = read_served_steps(logged(tmp_path / "good.jsonl", after, requests()))
    saved = 1 - again.busy_s / before.busy_s
    assert saved > 0.1
    assert saved == pytest.approx(tuning.saving.point, abs=0.02)
    second = tuned(again)
    assert second.keeps
    assert second.advised.compiled == tuning.advised.compiled
    assert second.verdict.startswith("keep your shapes")


def test_the_command_writes_a_file_that_an_engine_of_these_shapes_reads(tmp_path):
    path = logged(tmp_path / "passes.jsonl", machine(BAD), requests())
    out = tmp_path / "shapes.json"
    words = ["tune", str(path), "-k", "5", "--replications", "20", "--out", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "today: prefill 256,640 decode 8,640 blocks 81" in done.output
    assert f'"prefill_shapes": "@{out}"' in done.output
    found = json.loads(out.read_text())
    shapes = ShapeSet.parse(f"@{out}", f"@{out}", found["blocks"])
    assert [str(it) for it in shapes.prefill] == found["prefill_shapes"]
    assert [str(it) for it in shapes.decode] == found["decode_shapes"]
    assert found["tuned"]["verdict"].startswith("change: device seconds fall by ")


def test_others_are_as_much_slower_as_the_passes_that_ran_not_as_full_ones_of_warmup(tmp_path):
    quiet = machine(BAD, drift=0.0)
    served = read_served_steps(logged(tmp_path / "log.jsonl", quiet, requests(30), full_warmup=2.0))
    assert of_log(served, load_cost(SHAPES)).factors == pytest.approx((1.3, 1.3), rel=1e-6)


def test_one_shape_of_a_kind_does_not_say_that_others_are_in_proportion(tmp_path):
    path = logged(tmp_path / "log.jsonl", machine(BAD, drift=0.0), requests(30))
    costs = of_log(read_served_steps(path), load_cost(SHAPES))
    assert costs.deviation == pytest.approx(APART, rel=0.01), "the machine itself is steady"


def test_shapes_that_agree_say_more_than_one_and_those_that_do_not_are_far_apart():
    assert apart([]) == apart([0.7]) == APART
    assert apart([0.7] * 4) == pytest.approx(APART / 2)
    assert apart([0.0, 0.6]) == pytest.approx(np.sqrt((APART**2 + 0.18) / 2))


def test_others_compile_in_proportion_to_what_the_logged_start_took(tmp_path):
    path = logged(tmp_path / "log.jsonl", machine(BAD), requests(30), compiling=3.0)
    costs = of_log(read_served_steps(path), load_cost(SHAPES))
    both = ShapeSet.parse("256,640 128,640", "8,640")
    assert costs.of_shapes(both).compile_s == pytest.approx(
        3 * load_cost(SHAPES).of_shapes(both).compile_s
    )


def test_shapes_that_the_table_does_not_know_cost_what_they_took_and_others_are_refused():
    own = load_cost(SHAPES).of_shapes(BAD).scaled([1.3] * len(BAD))
    unknown = RescaledShapes(Nothing(), (1.3, 1.3), 0.0, "a log", own)
    assert unknown.of_shapes(BAD).each == own.each
    with pytest.raises(ValueError, match="has no figure for paged shapes"):
        unknown.of_shapes(ShapeSet.parse("128,640", "8,640"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bucket", "1,64,8"], "leave --bucket out"),
        (["--policy", "skip"], "leave --policy out"),
        (["--length-scale", "0.5"], "leave --length-scale out"),
        (["--memory-gib", "4"], "whose blocks of memory stay: leave --memory-gib out"),
        (["--rows", "0"], "rows 0 is below 1"),
    ],
)
def test_what_the_log_says_itself_is_not_asked_for_again(tmp_path, words, said):
    path = logged(tmp_path / "passes.jsonl", machine(BAD), requests(30))
    done = CliRunner().invoke(app, ["tune", str(path), *words])
    assert done.exit_code != 0
    assert said in str(done.exception) + done.output
