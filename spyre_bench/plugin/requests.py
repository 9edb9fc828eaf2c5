"""What a request may hold. vLLM checks most parameters; what it lets through and a pass would fail
at, or that we do not do, is refused here: by the front end, and once more by the scheduler."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm.config import VllmConfig
    from vllm.pooling_params import PoolingParams
    from vllm.sampling_params import SamplingParams

SEEDS = range(-(2**63), 2**64)
"""What torch's generators take; one request with n answers uses the n seeds from its own on."""


def require_prompt_type(prompt_type: str) -> None:
    """`prompt_type`: "token", "embeds", "multimodal" or "enc_dec", as vLLM's processed prompts."""
    if prompt_type != "token":
        raise ValueError(
            f"the spyre backend does not support prompts of type {prompt_type!r}: send text or "
            f"token ids"
        )


def refuse_request(
    prompt_token_ids: Sequence[int],
    params: SamplingParams | PoolingParams,
    vllm_config: VllmConfig,
) -> None:
    """Raises ValueError, with the parameter and what to do, for a request we cannot serve."""
    from vllm import sampling_params  # at the top it would be a circle: vLLM imports us first

    if not isinstance(params, sampling_params.SamplingParams):
        raise ValueError("the spyre backend does not support pooling: ask for generated text")
    vocab_size = vllm_config.model_config.get_vocab_size()
    _require_no_prompt_logprobs(params)
    _require_types(prompt_token_ids, params)
    _require_known_tokens(prompt_token_ids, vocab_size)
    _require_samplable(params, vocab_size)
    _require_known_end_of_thinking(params, vllm_config, vocab_size)
    _require_known_end_of_grammar(params, vllm_config, vocab_size)


def _require_types(prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
    """The engine's process reads every request by its types, and would end where one is another:
    SamplingParams takes a seed of 3.7, and a whole number of any size, without a word."""
    try:
        msgspec.convert(list(prompt_token_ids), list[int], strict=True)
    except msgspec.ValidationError as error:
        raise ValueError(
            f"the prompt's token ids are not whole numbers: {error}; send plain integers"
        ) from error
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    try:
        MsgpackDecoder(type(params)).decode(MsgpackEncoder().encode(params))
    except (msgspec.MsgspecError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"the sampling parameters cannot be sent to the engine: {error}; integers have at "
            f"most 64 bits, and each parameter the type that vLLM documents"
        ) from error


def _require_known_tokens(prompt_token_ids: Sequence[int], vocab_size: int) -> None:
    """vLLM allows what either the tokenizer or the model knows; the embedding has only the rows of
    the model, and a tokenizer may have been given tokens since."""
    known = range(vocab_size)
    strange = sorted({token for token in prompt_token_ids if token not in known})
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise ValueError(
            f"token id {', '.join(map(str, strange[:3]))}{more} in the prompt is not in the "
            f"model's vocabulary of {vocab_size} tokens (0 to {vocab_size - 1}): leave it out, or "
            f"serve a checkpoint whose embedding was resized to its tokenizer"
        )


def _require_no_prompt_logprobs(params: SamplingParams) -> None:
    for name in ("prompt_logprobs", "prompt_logprob_token_ids"):
        if getattr(params, name) is not None:
            raise ValueError(
                f"the spyre backend does not support {name}={getattr(params, name)!r} (a prefill "
                f"graph returns the logits of the last position only): leave it out"
            )


def _require_samplable(params: SamplingParams, vocab_size: int) -> None:
    if (params.logprobs or 0) > vocab_size:
        raise ValueError(
            f"logprobs={params.logprobs} is more than the model's vocabulary of {vocab_size} "
            f"tokens: ask for {vocab_size} at most, or for -1, which is all"
        )
    last = None if params.seed is None else params.seed + params.n - 1
    if params.seed is not None and not (params.seed in SEEDS and last in SEEDS):
        raise ValueError(
            f"seed={params.seed} with n={params.n} is beyond what a generator takes: use seeds "
            f"from {SEEDS[0]} to {SEEDS[-1]}"
        )
    for token, bias in (params.logit_bias or {}).items():
        if math.isnan(bias) or bias == math.inf:
            raise ValueError(
                f"logit_bias of token {token} is {bias}, after which no probability is a number: "
                f"use -100 to 100"
            )


def _require_known_end_of_thinking(
    params: SamplingParams, vllm_config: VllmConfig, vocab_size: int
) -> None:
    """Where a budget is spent the end of thinking is forced, so it must be among the logits."""
    reasoning = vllm_config.reasoning_config
    if params.thinking_token_budget is None or reasoning is None:
        return
    strange = [t for t in reasoning.reasoning_end_token_ids or () if t >= vocab_size]
    if strange:
        raise ValueError(
            f"thinking_token_budget={params.thinking_token_budget} cannot be kept: the end of "
            f"thinking has the token id {strange[0]}, and the model's vocabulary {vocab_size} "
            f"tokens: leave it out, or serve a checkpoint whose embedding was resized"
        )


def _require_known_end_of_grammar(
    params: SamplingParams, vllm_config: VllmConfig, vocab_size: int
) -> None:
    """A grammar allows the end of the sequence where it is complete, so the model must have it."""
    if params.structured_outputs is None:
        return
    from vllm.tokenizers import cached_tokenizer_from_config

    model = vllm_config.model_config
    ends = model.try_get_generation_config().get("eos_token_id") or []
    tokenizer = cached_tokenizer_from_config(model)
    ends = [*([ends] if isinstance(ends, int) else ends), tokenizer.eos_token_id]
    strange = [end for end in ends if end is not None and end >= vocab_size]
    if strange:
        raise ValueError(
            f"structured outputs cannot be kept: the end of a sequence has the token id "
            f"{strange[0]}, and the model's vocabulary {vocab_size} tokens: ask for plain text, or "
            f"serve a checkpoint whose embedding was resized"
        )
