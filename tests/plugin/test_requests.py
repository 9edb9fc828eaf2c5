"""Who checks what of a request: every field is classified, and what we check is refused."""

import math

import pytest

from spyre_bench.plugin.platform import SpyrePlatform
from tests.plugin import extremes
from tests.plugin.conftest import platform_as_before

OURS = {
    "logit_bias": {5: math.nan},
    "logprobs": 265,
    "prompt_logprobs": 1,
    "prompt_logprob_token_ids": [[7]],
    "seed": 2**64,
    "top_k": 2**70,
    "min_tokens": 40,
    "stream_interval": 2**70,
    "extra_args": {"a": object()},
    "max_tokens": 33,
}
"""Refused by `validate_request`, each with a value that vLLM's own checks let through."""
CHECKED_BY_VLLM = {
    "allowed_token_ids",
    "bad_words",
    "frequency_penalty",
    "logprob_token_ids",
    "min_p",
    "presence_penalty",
    "repetition_penalty",
    "routed_experts_prompt_start",
    "stop",
    "stop_token_ids",
    "structured_outputs",
    "temperature",
    "thinking_token_budget",
    "top_p",
    "trace_decode_token_ids",
    "n",
    "prompt_logprob_start",
    "repetition_detection",
}
NOT_FOR_A_PASS = {
    "detokenize",
    "flat_logprobs",
    "ignore_eos",
    "include_stop_str_in_output",
    "output_kind",
    "output_text_buffer_length",
    "skip_clone",
    "skip_reading_prefix_cache",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "watermarking",
    "_all_stop_token_ids",
    "_bad_words_token_ids",
    "_eos_token_id",
    "_watermarking_skipped",
}


@pytest.fixture(scope="module", autouse=True)
def configured(added_token):
    from vllm.engine.arg_utils import EngineArgs

    with platform_as_before():
        EngineArgs(
            model=str(added_token),
            additional_config={"spyre": {"buckets": [[4, 64, 16], [2, 192, 32]]}},
            max_logprobs=1000,
        ).create_engine_config()
        yield


def validate(prompt=(5, 6), **parameters):
    from vllm import SamplingParams

    SpyrePlatform.validate_request(
        {"type": "token", "prompt_token_ids": list(prompt)}, SamplingParams(**parameters)
    )


def test_every_sampling_parameter_is_classified():
    from vllm import SamplingParams

    assert set(SamplingParams.__struct_fields__) == {*OURS, *CHECKED_BY_VLLM, *NOT_FOR_A_PASS}


def test_every_field_of_the_protocol_is_sent_at_its_extremes():
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    fields = {*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields}
    assert fields == set(extremes.FIELDS)


@pytest.mark.parametrize(("name", "value"), list(OURS.items()), ids=lambda v: str(v)[:20])
def test_what_vllm_lets_through_and_a_pass_would_fail_at_is_refused(name, value):
    chosen = {"max_tokens": None} if name == "min_tokens" else {}
    with pytest.raises(ValueError, match=r"seed|logit_bias|logprob|bucket|sent to the engine"):
        validate(**({name: value} | chosen))


@pytest.mark.parametrize("prompt", [[264], [5, 264, 10**9], [-1], [2**70]])
def test_a_token_beyond_the_embedding_is_refused_by_its_id(prompt):
    with pytest.raises(ValueError, match=r"token id .* not in the model's vocabulary of 264"):
        validate(prompt)


@pytest.mark.parametrize("prompt", [[1.5], ["5"], [True], [None]])
def test_a_token_id_that_is_no_whole_number_is_refused(prompt):
    with pytest.raises(ValueError, match="token ids are not whole numbers"):
        validate(prompt)


def test_a_grammar_whose_end_the_model_lacks_is_refused():
    from vllm.sampling_params import StructuredOutputsParams

    with pytest.raises(ValueError, match=r"outputs cannot be kept: .* token id 264"):
        validate(structured_outputs=StructuredOutputsParams(choice=["yes"]))


def test_the_last_of_several_seeds_counts():
    validate(seed=2**64 - 3, n=3, temperature=1.0)
    with pytest.raises(ValueError, match="seed=18446744073709551614 with n=3"):
        validate(seed=2**64 - 2, n=3, temperature=1.0)


def test_a_parameter_of_another_type_is_refused_with_its_name():
    with pytest.raises(ValueError, match=r"cannot be sent to the engine: .* at `\$.seed`"):
        validate(seed=3.7)


@pytest.mark.parametrize("token", [10**6, "x"])
def test_a_request_that_fails_in_the_sampler_ends_alone(llm, reference, token):
    from vllm import SamplingParams

    def params(**chosen):
        return SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, **chosen)

    seeded = SamplingParams(temperature=2.0, seed=3, max_tokens=6, ignore_eos=True)
    (alone,) = llm.generate(["a prompt"], [seeded], use_tqdm=False)
    kinds = [params(), params(extra_args={"force_token": token}), seeded]
    first, failed, drawn = llm.generate(["a prompt"] * 3, kinds, use_tqdm=False)
    assert first.outputs[0].token_ids == reference.greedy("a prompt", 6)
    assert failed.outputs[0].finish_reason == "error"
    assert drawn.outputs[0].token_ids == alone.outputs[0].token_ids
    assert llm.generate("a prompt", params(), use_tqdm=False)[0].outputs[0].token_ids == (
        reference.greedy("a prompt", 6)
    )


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("tokens", [193, 224, 225, 5000])
def test_a_prompt_of_any_excess_is_refused_with_one_sentence_offline(llm, tokens, text):
    prompt = "a" * tokens if text else {"prompt_token_ids": [5] * tokens}
    with pytest.raises(ValueError, match=r"no bucket fits prompt_tokens=.*the nearest buckets"):
        llm.generate(prompt, use_tqdm=False)


def test_a_truncated_prompt_is_served_and_all_that_fits_is_the_longest_bucket(llm):
    from vllm import SamplingParams

    one = SamplingParams(max_tokens=1)
    for limit, kept in ((7, 7), (-1, 192)):
        (result,) = llm.generate(
            ["a" * 5000], one, use_tqdm=False, tokenization_kwargs={"truncate_prompt_tokens": limit}
        )
        assert len(result.prompt_token_ids) == kept
