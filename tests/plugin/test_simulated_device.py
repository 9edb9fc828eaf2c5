"""A device that computes nothing and takes the time that a cost says: what vLLM's `LLM` does with
it, and which deployments cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from spyre_bench.cost.source import load_cost
from spyre_bench.model_sizes import PRESETS, ModelSizes
from spyre_bench.pass_log import read_passes, read_step_rows, read_warmup
from spyre_bench.plugin.config import SpyreConfig
from spyre_bench.shapes import Bucket
from tests.plugin.conftest import platform_as_before, requests_of
from tests.plugin.simulated_hosts import DECODE, PREFILL, write_cost_table

CARD = "simulated:card:smollm2-135m"


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    return write_cost_table(tmp_path_factory.mktemp("made-up") / "cost.csv")


@pytest.fixture(scope="module")
def make(without_weights, table):
    """An `LLM` on the made-up engine's costs."""
    from vllm import LLM

    def made(**spyre):
        options = spyre.pop("options", {})
        spyre = {"device": f"simulated:{table}", "clock": "virtual"} | spyre
        return LLM(
            str(without_weights),
            additional_config={"spyre": spyre},
            disable_log_stats=False,
            **options,
        )

    return made


@pytest.fixture(scope="module")
def static_log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("static") / "passes.jsonl"


@pytest.fixture(scope="module")
def static(make, static_log) -> Iterator:
    with platform_as_before():
        one = make(buckets=[[4, 64, 32], [2, 256, 64]], pass_log=str(static_log))
    with requests_of(one):
        yield one


@pytest.fixture(scope="module")
def continuous_log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("continuous") / "passes.jsonl"


@pytest.fixture(scope="module")
def continuous(make, continuous_log) -> Iterator:
    with platform_as_before():
        one = make(
            batching="continuous",
            prefill_shapes=PREFILL,
            decode_shapes=DECODE,
            pass_log=str(continuous_log),
        )
    with requests_of(one):
        yield one


@pytest.fixture(scope="module", params=["static", "continuous"])
def either(request):
    llm = request.getfixturevalue(request.param)
    with requests_of(llm):
        yield llm


def ask(llm, prompt="Once upon a time", told=None, **chosen):
    from vllm import SamplingParams

    params = SamplingParams(**{"max_tokens": 8, "extra_args": told} | chosen)
    (result,) = llm.generate([prompt], params, use_tqdm=False)
    return result


def clock_of(llm):
    return llm.llm_engine.engine_core.engine_core.scheduler._time


# --- what it says ---------------------------------------------------------------------------------


def test_it_says_words_the_same_ones_to_the_same_prompt_and_as_many_as_max_tokens(either):
    first, again = ask(either).outputs[0], ask(either).outputs[0]
    other = ask(either, "Twice upon a time in").outputs[0]
    assert first.finish_reason == "length"
    assert len(first.token_ids) == 8
    assert again.token_ids == first.token_ids != other.token_ids
    words = first.text.split(" ")
    assert words[0] == ""
    assert all(word.isalpha() and word.islower() for word in words[1:])


def test_static_and_continuous_batching_say_the_same(static, continuous):
    with requests_of(static):
        one = ask(static).outputs[0].token_ids
    with requests_of(continuous):
        assert ask(continuous).outputs[0].token_ids == one


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_temperature_and_seed_change_nothing(either, temperature):
    sampled = ask(either, temperature=temperature, seed=3, top_p=0.9).outputs[0]
    assert sampled.token_ids == ask(either).outputs[0].token_ids


def test_vllms_sampler_chooses_the_same_where_logits_are_asked_for(either):
    with_logprobs = ask(either, logprobs=2).outputs[0]
    assert with_logprobs.token_ids == ask(either).outputs[0].token_ids
    assert all(
        one[token].logprob == pytest.approx(0)
        for one, token in zip(with_logprobs.logprobs, with_logprobs.token_ids, strict=True)
    )


def test_a_grammar_and_a_bias_are_kept(either):
    from vllm.sampling_params import StructuredOutputsParams

    digits = StructuredOutputsParams(regex="[0-9]{4}")
    assert ask(either, structured_outputs=digits).outputs[0].text.isdigit()
    first = ask(either).outputs[0].token_ids[0]
    assert ask(either, allowed_token_ids=[777]).outputs[0].token_ids[0] == 777 != first


def test_a_request_that_was_told_ends_with_that_token(either):
    ended = ask(either, told={"spyre_output_tokens": 3}).outputs[0]
    assert (ended.finish_reason, len(ended.token_ids)) == ("stop", 3)
    longer = ask(either, told={"spyre_output_tokens": 300}).outputs[0]
    assert (longer.finish_reason, len(longer.token_ids)) == ("length", 8)


def test_a_stop_token_of_the_clients_own_ends_no_request_early(either):
    said = ask(either).outputs[0].token_ids
    stopped = ask(either, stop_token_ids=[said[2]]).outputs[0]
    assert stopped.finish_reason == "length"
    assert said[2] not in stopped.token_ids


# --- the time it takes ----------------------------------------------------------------------------


def test_passes_of_static_batching_take_their_buckets_seconds(static, static_log, table):
    ask(static)
    passes, cost = read_passes(static_log), load_cost(table).of(Bucket(4, 64, 32))
    short = passes[passes["bucket"] == "4,64,32"]
    for kind, seconds in (("prefill", cost.prefill_s), ("decode", cost.decode_s)):
        assert short[short["kind"] == kind]["seconds"].to_numpy() == pytest.approx(seconds)


def test_passes_of_continuous_batching_take_what_live_rows_and_context_cost(
    continuous, continuous_log, table
):
    ask(continuous, "word " * 150)
    costs = load_cost(table).of_shapes(continuous_shapes(continuous))
    by_shape = {cost.shape: cost for cost in costs.each}
    steps = read_step_rows(continuous_log)
    assert {step.kind for step in steps} == {"chunk", "rows"}
    for step in steps:
        cost, context = by_shape[step.shape], sum(step.context_tokens)
        computed = step.tokens[0] + step.again_tokens
        rows = len(step.requests)
        seconds = (
            cost.pass_s(rows, context) if step.kind == "rows" else cost.pass_s(context - computed)
        )
        assert step.seconds == pytest.approx(seconds)


def continuous_shapes(llm):
    return SpyreConfig.of(llm.llm_engine.vllm_config).shapes


def test_requests_come_and_go_when_they_were_told_to(either):
    from vllm import SamplingParams

    zero_s = clock_of(either).now_s
    told = [
        {"spyre_arrival_s": zero_s + 100.0},
        {"spyre_arrival_s": zero_s + 50.0, "spyre_leaves_s": zero_s + 50.05},
        {"spyre_arrival_s": zero_s + 10.0},
    ]
    params = [SamplingParams(max_tokens=60, extra_args=one) for one in told]
    results = either.generate(["a b c"] * 3, params, use_tqdm=False)
    reasons = [result.outputs[0].finish_reason for result in results]
    assert reasons == ["length", "abort", "length"]
    assert 0 < len(results[1].outputs[0].token_ids) < 60
    queued = [result.metrics.queued_ts - zero_s for result in results]
    assert queued == pytest.approx([100.0, 50.0, 10.0])
    for result in (results[0], results[2]):
        metrics = result.metrics
        ran_s = metrics.last_token_ts - metrics.scheduled_ts
        assert metrics.queued_ts <= metrics.scheduled_ts < metrics.first_token_ts
        assert 0 < ran_s < 0.3  # 60 passes of 1 to 4 ms
    assert clock_of(either).now_s == pytest.approx(zero_s + 100.15, abs=0.15)


def test_the_virtual_clock_begins_when_the_engine_is_ready(make):
    with platform_as_before():
        fresh = make(buckets=[[4, 64, 32]])
    assert clock_of(fresh).now_s == 0


def test_a_cold_start_takes_the_compile_seconds_and_no_warmup_does_not(make, tmp_path, monkeypatch):
    from spyre_bench.plugin import clock

    slept: list[float] = []

    def jumped(self, at_s: float) -> None:
        slept.append(at_s - self.now_s)
        self.now_s = max(self.now_s, at_s)

    monkeypatch.setattr(clock.VirtualClock, "wait_until", jumped)
    for warmup, wanted in ((True, [0.01 + 0.008 + 0.002]), (False, [])):
        slept.clear()
        log = tmp_path / f"{warmup}.jsonl"
        with platform_as_before():
            make(buckets=[[4, 64, 32]], warmup=warmup, pass_log=str(log))
        assert slept == pytest.approx(wanted)
        (row,) = read_warmup(log).to_dict("records")
        assert row["prefill_compile_s"] + row["decode_compile_s"] == (0.01 if warmup else 0)
        assert (row["prefill_s"], row["decode_s"]) == (0.008, 0.002)
        assert row["was_warm"] is not warmup


@pytest.fixture
def device(table):
    """A device with the made-up buckets on a clock of its own."""
    from spyre_bench.cost.bucket_cost import price
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.plugin.clock import VirtualClock
    from spyre_bench.plugin.simulated_model import SimulatedCausalLM, Voice
    from spyre_bench.shapes import BucketSet

    buckets = BucketSet.parse("4,64,32")
    engine = EngineConfig(model_directory=Path("none"), buckets=buckets, compile_backend="eager")
    sizes, voice = PRESETS["smollm2-135m"], Voice(range(100), 100)
    return SimulatedCausalLM(engine, sizes, voice, VirtualClock(), price(buckets, load_cost(table)))


def test_what_the_loop_takes_between_passes_does_not_come_on_top(device):
    device.prefill(Bucket(4, 64, 32), [[1]])  # 8 ms
    for _ in range(3):
        device.clock.now_s += 0.001
        device.decode([1])  # 2 ms
    assert device.clock.now_s == pytest.approx(0.008 + 3 * 0.002)


def test_after_a_rest_a_pass_takes_its_whole_time(device):
    device.prefill(Bucket(4, 64, 32), [[1]])
    device.rest()
    device.clock.now_s += 0.001
    device.decode([1])
    assert device.clock.now_s == pytest.approx(0.008 + 0.001 + 0.002)


def test_a_loop_that_is_longer_than_the_passes_is_not_made_up_for(device):
    device.prefill(Bucket(4, 64, 32), [[1]])
    device.clock.now_s += 0.050
    device.decode([1])
    device.decode([1])
    assert device.clock.now_s == pytest.approx(0.008 + 0.050 + 0.002)


# --- what a request may be told -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"spyre_output_token": 3}, "did you mean spyre_output_tokens"),
        ({"spyre_output_tokens": 0}, "a whole number above 0"),
        ({"spyre_output_tokens": 2.5}, "a whole number above 0"),
        ({"spyre_arrival_s": "soon"}, "a number of seconds"),
        ({"spyre_arrival_s": 5, "spyre_leaves_s": 4}, "is before its spyre_arrival_s"),
    ],
)
def test_what_nobody_can_be_told_is_refused(either, told, words):
    with pytest.raises(ValueError, match=words):
        ask(either, told=told)


def test_an_end_without_a_token_for_it_is_refused(either):
    with pytest.raises(ValueError, match="leave out ignore_eos, or give stop_token_ids"):
        ask(either, told={"spyre_output_tokens": 3}, ignore_eos=True)


def test_extra_args_of_others_are_left_alone(either):
    assert ask(either, told={"somebody_elses": 1}).outputs[0].finish_reason == "length"


def test_a_device_that_computes_cannot_be_told(llm):
    with pytest.raises(ValueError, match="are for a simulated device, and this one computes"):
        ask(llm, "x", told={"spyre_output_tokens": 3})


# --- deployments that cannot be -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spyre", "words"),
    [
        ({"device": "simulated:"}, 'is "simulated:" and a source of costs'),
        ({"device": "card:granite-3.3-8b"}, "did you mean 'simulated:card:granite-3.3-8b'"),
        ({"device": "nowhere"}, 'is "simulated:" and a source of costs'),
        ({"device": "simulated:card:granite-9"}, "is no preset: use one of"),
        ({"device": "simulated:nowhere.csv"}, "nowhere.csv"),
        ({"device": CARD + ",tp=3"}, "tp=3 and the engine has --tensor-parallel-size 1"),
        (
            {"device": "simulated:card:granite-3.3-8b"},
            r"serve \$\(spyre-bench model granite-3.3-8b",
        ),
        ({"clock": "sundial"}, "is one of real, virtual"),
        ({"buckets": [[64, 512, 64]]}, "is outside of the cost table"),
        ({"device": CARD, "buckets": [[2048, 4096, 4096]]}, "use batch_size"),
        ({"device": CARD, "memory_bytes": 1000}, "memory_bytes is 1,000"),
        ({"device": None}, 'is a setting of a simulated "device" alone'),
    ],
)
def test_a_deployment_that_cannot_be_is_refused_with_a_remedy(make, spyre, words):
    with platform_as_before(), pytest.raises(ValueError, match=words):
        make(**{"buckets": [[4, 64, 32]]} | spyre)


@pytest.mark.parametrize("name", ["buckets", "shapes"])
def test_a_table_that_ships_goes_by_its_name(name):
    config = SpyreConfig.read({"device": f"simulated:{name}", "buckets": [[4, 64, 32]]}, {})
    assert config.cost.label == load_cost(name).label


def test_ranks_that_a_table_was_not_measured_with_are_refused(make):
    with platform_as_before(), pytest.raises(ValueError, match="measured with tp=1"):
        make(buckets=[[4, 64, 32]], options={"tensor_parallel_size": 3})


def test_a_start_whose_compile_seconds_nobody_knows_is_refused(make, table, tmp_path):
    import pandas as pd

    unknown = tmp_path / "unknown.csv"
    pd.read_csv(table).drop(columns="compile_s").to_csv(unknown, index=False)
    spyre = {"device": f"simulated:{unknown}", "buckets": [[4, 64, 32]]}
    with platform_as_before():
        with pytest.raises(ValueError, match='"warmup": false'):
            make(**spyre)
        make(**spyre, warmup=False)


def test_a_clock_that_jumps_needs_the_callers_process(make, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with platform_as_before(), pytest.raises(ValueError, match="VLLM_ENABLE_V1_MULTIPROCESSING=0"):
        make(buckets=[[4, 64, 32]])


# --- several cards --------------------------------------------------------------------------------


def test_four_cards_are_one_process_with_the_blocks_and_the_limit_that_they_have(tmp_path):
    from vllm import LLM

    from spyre_bench.checkpoints.config_only import config_only_directory

    sizes = PRESETS["granite-3.3-8b"]
    text = "card:granite-3.3-8b,tp=4"
    with platform_as_before():
        llm = LLM(
            str(config_only_directory(sizes.name, sizes.as_config())),
            tensor_parallel_size=4,
            max_model_len=32768,
            max_num_seqs=32,
            additional_config={
                "spyre": {
                    "batching": "continuous",
                    "device": f"simulated:{text}",
                    "clock": "virtual",
                }
            },
        )
        with requests_of(llm):
            assert len(ask(llm).outputs[0].token_ids) == 8
    config, card = SpyreConfig.of(llm.llm_engine.vllm_config), load_cost(text)
    assert config.shapes.blocks == card.slots // 64 < 32 * 32768 // 64
    assert config.rules.max_batch_context_tokens == card.batch_tokens > 0
    assert llm.llm_engine.vllm_config.cache_config.num_gpu_blocks == config.shapes.blocks


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_without_weights_has_the_presets_sizes(name):
    assert ModelSizes.of(PRESETS[name].as_config(), name) == PRESETS[name]


def test_a_directory_without_weights_is_a_config_and_a_tokenizer(without_weights):
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(without_weights)
    tokenizer = AutoTokenizer.from_pretrained(without_weights)
    assert config.eos_token_id == tokenizer.eos_token_id
    assert not list(without_weights.glob("*.safetensors"))
    assert json.loads((without_weights / "config.json").read_text())["hidden_size"] == 576
