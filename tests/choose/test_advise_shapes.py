"""The advised shapes, and what they are held against."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from spyre_bench.choose.advise_shapes import Engine, advise_shapes, half_steps, within_contexts
from spyre_bench.choose.visits import ShapeLimits
from spyre_bench.cli.main import app
from spyre_bench.cost.bucket_cost import CostModel
from spyre_bench.cost.source import load_cost
from spyre_bench.policy.continuous import Rules
from spyre_bench.shape_set import ShapeSet
from spyre_bench.simulate.scenario import Scenario
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


def test_shapes_that_run_today_stay_where_a_change_makes_no_difference(requests, advice):
    again = advise_shapes(
        requests, load_cost(), ShapeLimits(6), Engine(8, 512), RULES, advice.shapes
    )
    assert again.shapes == advice.shapes
    frame = again.contenders.set_index("name")
    assert frame["advised"]["today"]
    assert again.verdict.startswith("keep your shapes")


def test_todays_shapes_that_refuse_requests_are_not_said_to_take_fewer_seconds(requests):
    today = ShapeSet.parse("64,256", "8,256")
    found = advise_shapes(requests, load_cost(), ShapeLimits(6), Engine(8, 512), RULES, today)
    frame = found.contenders.set_index("name")
    assert frame["fitted_busy_s"]["today"] < frame.loc[frame["advised"], "fitted_busy_s"].item()
    refused = frame["fitted_rejected"]["today"]
    assert f"today refuses {refused} of the 120 requests of the first half" in found.verdict
    assert "device seconds than today" not in found.verdict


def test_on_the_card_a_symbolic_shape_is_a_contender_of_its_own(requests):
    card = load_cost("card:granite-3.3-8b,tp=4")
    found = advise_shapes(requests, card, ShapeLimits(4), Engine(4, 256), RULES)
    assert "one symbolic shape" in set(found.contenders["name"])


def test_a_budget_of_seconds_is_kept(requests):
    found = advise_shapes(requests, load_cost(), ShapeLimits(6, 15.0), Engine(4, 256), RULES)
    assert found.costs.compile_s <= 15
    assert found.certificate.costs.compile_s <= 15


def test_no_shape_is_beyond_the_limit_on_rows_times_context(requests):
    """And the widths up to the engine's are there, over contexts that the limit leaves them."""
    card = load_cost("card:granite-3.3-8b,tp=4")
    rules = Rules(max_batch_context_tokens=4096)
    found = advise_shapes(requests, card, ShapeLimits(6), Engine(8, 256), rules)
    for row in found.contenders.itertuples():
        if row.name != "one symbolic shape":  # which runs smaller programs
            shapes = ShapeSet.parse(row.prefill, row.decode).decode
            assert all(it.rows * it.context_length <= 4096 for it in shapes), row.name
    assert found.shapes.max_model_len >= (requests.prompt_tokens + requests.max_tokens).max()


def test_wide_shapes_that_cannot_do_are_no_reason_to_give_up_narrow_ones(requests):
    """Two shapes: wide ones are short within the limit, and the longest request needs a third."""
    card = load_cost("card:granite-3.3-8b,tp=4")
    rules = Rules(max_batch_context_tokens=4096)
    found = advise_shapes(requests, card, ShapeLimits(2), Engine(8, 256), rules)
    names = set(found.contenders["name"])
    assert "all widths" not in names
    assert any(name.startswith("B ≤ 1") for name in names)


def test_a_shape_that_the_costs_say_nothing_of_is_no_candidate(requests):
    """And no other one stands in its place: it would count for two."""

    class Known(CostModel):
        def of_shapes(self, shapes):
            if min(it.context_length for it in shapes.decode) < 512:
                raise ValueError("not measured")
            return load_cost().of_shapes(shapes)

    found = advise_shapes(requests, Known(), ShapeLimits(6), Engine(4, 256), RULES)
    for row in found.contenders.itertuples():
        shapes = ShapeSet.parse(row.prefill, row.decode)
        assert row.graphs == len(shapes), row.name
        assert min(it.context_length for it in shapes.decode) >= 512


def test_tokens_in_the_prefix_cache_are_not_paid_for(requests):
    def busy_s(text):
        found = advise_shapes(
            requests,
            load_cost(),
            ShapeLimits(4),
            Engine(4, 256),
            RULES,
            prefixes=Scenario("azure_conv", prefix_cache=text).prefixes,
        )
        return found.contenders.set_index("name").loc["one shape of each", "fitted_busy_s"]

    assert busy_s("share:0.9") < 0.97 * busy_s("off")


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


COMMAND = (
    "shapes --workload azure_conv --requests 120 --length-scale 0.25 --arrivals poisson:0.5 "
    "-k 4 --rows 4 --chunk-tokens 256"
)


def test_the_command_says_what_to_paste_and_why():
    done = CliRunner().invoke(app, COMMAND.split())
    assert done.exit_code == 0, done.output
    for words in ("Verdict:", "Certificate of ", "<- advised", "--additional-config '"):
        assert words in done.output
    chosen = json.loads(done.output.partition("--additional-config '")[2].partition("'")[0])
    as_json = CliRunner().invoke(app, [*COMMAND.split(), "--json"])
    assert json.loads(as_json.output)["additional_config"] == chosen
    assert chosen["spyre"]["batching"] == "continuous"
    assert chosen["spyre"]["rules"] == {"chunk_tokens": 256}  # all else is as usual
    ShapeSet.parse(chosen["spyre"]["prefill_shapes"], chosen["spyre"]["decode_shapes"])


def test_the_command_draws_its_contenders(tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "shapes.png"
    done = CliRunner().invoke(app, [*COMMAND.split(), "--plot", str(picture)])
    assert done.exit_code == 0, done.output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_obeys_the_prefix_cache_or_says_why_not():
    done = CliRunner().invoke(app, [*COMMAND.split(), "--prefix-cache", "trace"])
    assert done.exit_code != 0
    assert "hash_ids" in str(done.exception)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("-k 1", "k 1 is below 2"),
        ("--chunk-tokens 100", "chunk 100 is not a positive multiple of 64"),
        ("--warmup-budget 1", "no choice of 4 shapes within a warmup budget of 1 s"),
        ("--plot x.txt", "is no picture"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(more, words):
    done = CliRunner().invoke(app, [*COMMAND.split(), *more.split()])
    assert done.exit_code != 0
    assert words in str(done.exception or done.output)


def test_widths_and_chunks_lie_half_way_between_doublings_where_they_can_be_compiled():
    assert half_steps(1, 8) == [1, 2, 3, 4, 6, 8]
    assert half_steps(64, 512) == [64, 128, 192, 256, 384, 512]
    assert half_steps(64, 320) == [64, 128, 192, 256, 320]
    assert half_steps(1, 1) == [1]


def test_requests_beyond_the_contexts_of_a_table_are_left_out_unless_it_extrapolates(requests):
    class Short(CostModel):
        label = "short"

        def covers_contexts(self, workload):
            return workload.prompt_tokens + workload.max_tokens <= 512

    kept = within_contexts(requests, Short())
    assert 0 < len(kept) < len(requests)
    assert (kept.prompt_tokens + kept.max_tokens).max() <= 512
    assert within_contexts(requests, load_cost(extrapolate=True)) is requests
    with pytest.raises(ValueError, match="longer than the contexts of the cost table: measure"):
        within_contexts(requests.scaled(lengths=100), Short())
