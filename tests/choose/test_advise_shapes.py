"""The advised shapes, and what they are held against."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from spyre_bench.choose.advise_shapes import Engine, advise_shapes, doublings
from spyre_bench.choose.visits import ShapeLimits
from spyre_bench.cli.main import app
from spyre_bench.cost.source import load_cost
from spyre_bench.policy.continuous import Rules
from spyre_bench.shape_set import ShapeSet
from spyre_bench.workload.source import load_workload

RULES = Rules()


@pytest.fixture(scope="module")
def requests():
    drawn = load_workload("azure_conv", requests=240, rng=np.random.default_rng(0))
    return drawn.scaled(lengths=0.25).with_arrivals("poisson:0.5", np.random.default_rng(1))


@pytest.fixture(scope="module")
def advice(requests):
    today = ShapeSet.parse("512,1536", "8,1536")
    return advise_shapes(requests, load_cost(), ShapeLimits(6), Engine(8, 512), RULES, today)


def test_the_advised_set_is_within_the_limits_and_serves_the_longest_request(advice, requests):
    assert len(advice.shapes) <= 6
    assert advice.shapes.max_model_len >= (requests.prompt_tokens + requests.max_tokens).max()
    frame = advice.contenders
    assert frame["advised"].sum() == 1
    assert (frame[["fitted_rejected", "held_out_rejected"]] == 0).all().all()


def test_no_contender_within_the_limits_is_faster_by_more_than_a_tie(advice):
    frame = advice.contenders.set_index("name")
    within = frame[frame["graphs"] <= 6]
    advised = frame[frame["advised"]].iloc[0]
    assert advised["fitted_busy_s"] <= within["fitted_busy_s"].min() * 1.03
    for half in ("fitted", "held_out"):
        assert (frame[f"{half}_bound_s"] <= frame[f"{half}_busy_s"] * (1 + 1e-9)).all()


def test_other_schemes_and_todays_shapes_are_beside_it_and_what_costs_the_same_is_there_once(
    advice,
):
    names = list(advice.contenders["name"])
    assert {"one shape of each", "powers of two", "today"} <= set(names)
    assert "one symbolic shape" not in names  # this engine compiles it at its largest
    assert "one shape of each" in advice.verdict


def test_on_the_card_a_symbolic_shape_is_a_contender_of_its_own(requests):
    card = load_cost("card:granite-3.3-8b,tp=4")
    found = advise_shapes(requests, card, ShapeLimits(4), Engine(4, 256), RULES)
    assert "one symbolic shape" in set(found.contenders["name"])


def test_a_budget_of_seconds_is_kept(requests):
    found = advise_shapes(requests, load_cost(), ShapeLimits(6, 15.0), Engine(4, 256), RULES)
    assert found.costs.compile_s <= 15
    assert found.certificate.costs.compile_s <= 15


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ((0, 64), "rows 0 is below 1"),
        ((4, 100), "chunk 100 is not a positive multiple of 64: use 128"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(engine, words):
    with pytest.raises(ValueError, match=words):
        Engine(*engine)


def test_doublings_end_with_the_last_itself():
    assert doublings(64, 320) == [64, 128, 256, 320]
    assert doublings(8, 8) == [8]


COMMAND = (
    "shapes --workload azure_conv --requests 120 --length-scale 0.25 --arrivals poisson:0.5 "
    "-k 4 --rows 4 --chunk-tokens 256"
)


def test_the_command_says_what_to_paste_and_why():
    done = CliRunner().invoke(app, COMMAND.split())
    assert done.exit_code == 0, done.output
    for words in ("Verdict:", "Certificate:", "<- advised", "--additional-config '"):
        assert words in done.output
    chosen = json.loads(done.output.partition("--additional-config '")[2].partition("'")[0])
    as_json = CliRunner().invoke(app, [*COMMAND.split(), "--json"])
    assert json.loads(as_json.output)["additional_config"] == chosen
    assert chosen["spyre"]["batching"] == "continuous"
    ShapeSet.parse(chosen["spyre"]["prefill_shapes"], chosen["spyre"]["decode_shapes"])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("-k 1", "k 1 is below 2"),
        ("--chunk-tokens 100", "chunk 100 is not a positive multiple of 64"),
        ("--warmup-budget 1", "no choice of 4 shapes within a warmup budget of 1.0 s"),
        ("--plot x.txt", "is no picture"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(more, words):
    done = CliRunner().invoke(app, [*COMMAND.split(), *more.split()])
    assert done.exit_code != 0
    assert words in str(done.exception or done.output)
