"""What no hook of vLLM 0.32 reaches, in place: two faults at start and end, a look at requests
before their max_tokens is lowered and at options before defaults are filled in, the words for a
prompt that is too long, a function of its model code that compiles itself, and a host's Triton.

Each test of `tests/plugin/test_shims.py` fails once vLLM does without, and names what can go.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import isfunction
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from vllm.engine.arg_utils import EngineArgs


def make_shutdown_quiet() -> None:
    """Every engine that is not on vLLM's CPU platform ends with two calls that raise where there
    is no accelerator, and prints a traceback: nothing is to be emptied there."""
    if torch.accelerator.is_available():
        return
    torch.accelerator.empty_cache = _nothing_to_empty
    torch.accelerator.empty_host_cache = _nothing_to_empty


def _nothing_to_empty() -> None:
    """No accelerator: no cache of one."""


def leave_triton_to_the_host() -> None:
    """vLLM asks whether the host has Triton, not whether its device can use it, and with
    CUDA_VISIBLE_DEVICES="" it does not look closer: its sampler then runs a GPU's kernel on our
    logits, and its scheduler sends a request that comes back to a runner that is not ours. From
    here on there is none, in the modules that are loaded and those to come."""
    importlib.import_module("vllm.triton_utils")  # those to come read it from there
    for name, module in list(sys.modules.items()):
        if name.startswith("vllm.") and hasattr(module, "HAS_TRITON"):
            module.HAS_TRITON = False


def leave_compiling_to_the_engine() -> None:
    """Some functions of vLLM's layers and models compile themselves (the mask of a vocabulary that
    is split over ranks, Cohere's norms), which would be graphs beside those of a pass. From here on
    they are plain, in all modules that are loaded."""
    for module in list(sys.modules.values()):
        if not getattr(module, "__name__", "").startswith("vllm.model_executor."):
            continue
        for name, held in list(vars(module).items()):
            plain = getattr(held, "_torchdynamo_orig_callable", None) if isfunction(held) else None
            if plain is not None:
                setattr(module, name, plain)


def let_ctrl_c_through() -> None:
    """A Ctrl-C while the engine process starts is swallowed by the socket that waits for it: the
    front end then waits ten minutes more for an engine that it has ended."""
    from vllm.utils.network_utils import zmq_socket_ctx
    from vllm.v1.engine import utils

    @contextmanager
    def attentive(*args, **kwargs) -> Iterator:
        interrupt = None
        with zmq_socket_ctx(*args, **kwargs) as socket:
            try:
                yield socket
            except KeyboardInterrupt as error:
                interrupt = error
                raise
        if interrupt is not None:
            raise interrupt

    utils.zmq_socket_ctx = attentive


def watch_max_tokens(on_clamp: Callable[[int, str], None]) -> None:
    """vLLM's server lowers max_tokens to what the platform allows before any hook sees the request.
    From here on it calls `on_clamp(prompt_tokens, reason)` too, the reason being whose value was
    lowered: "max_tokens" (the client's) or "default" (the server's or the model's). And a prompt
    as long as the whole context is granted a token, so that it is refused with the platform's
    sentence and not for a max_tokens of 0 that nobody asked for."""
    from vllm.entrypoints.serve.utils import api_utils

    original = getattr(api_utils.get_max_tokens, "__wrapped__", api_utils.get_max_tokens)

    @wraps(original)
    def attentive(max_model_len, max_tokens, input_length, default_sampling_params, *rest, **more):
        granted = original(
            max_model_len, max_tokens, input_length, default_sampling_params, *rest, **more
        )
        if input_length == max_model_len and max_tokens != 0:
            granted = max(1, granted)
        default = default_sampling_params.get("max_tokens")
        if max_tokens is not None and granted < max_tokens:
            on_clamp(input_length, "max_tokens")
        elif max_tokens is None and default is not None and granted < default:
            on_clamp(input_length, "default")
        return granted

    for module in list(sys.modules.values()):  # who has imported it holds it by name
        held = vars(module).get("get_max_tokens")
        if getattr(held, "__wrapped__", held) is original:
            module.get_max_tokens = attentive


def watch_options(on_options: Callable[[EngineArgs], None]) -> None:
    """vLLM fills in options that nobody has set before any hook sees its configuration. From here
    on it calls `on_options` with each set of options as it was given, before it reads the model."""
    from vllm.engine.arg_utils import EngineArgs

    original = getattr(
        EngineArgs.create_model_config, "__wrapped__", EngineArgs.create_model_config
    )

    @wraps(original)
    def attentive(self, *args, **kwargs):
        if not vars(self).setdefault("_spyre_has_seen_it", False):
            self._spyre_has_seen_it = True
            on_options(self)
        return original(self, *args, **kwargs)

    EngineArgs.create_model_config = attentive


def explain_long_prompts(
    refuse: Callable[[int, int], None], longest_prompt: Callable[[], int]
) -> None:
    """vLLM refuses a prompt beyond `max_model_len` while it reads it, before any hook. From here on
    `refuse(prompt_tokens, max_tokens)` is called first and may raise; of a text too long to be
    tokenized the tokens are the fewest it can have. Texts are counted to their end, not to one
    token beyond the limit, and `truncate_prompt_tokens=-1` cuts to `longest_prompt()`."""
    from vllm.exceptions import VLLMValidationError
    from vllm.renderers.params import TokenizeParams

    def plain(member: Callable) -> Callable:
        return getattr(member, "__wrapped__", member)

    def explained(check: Callable) -> Callable:
        @wraps(check)
        def attentive(params, tokenizer, prompt):
            try:
                return check(params, tokenizer, prompt)
            except VLLMValidationError:
                tokens = len(prompt)
                if isinstance(prompt, str):
                    tokens = -(-tokens // tokenizer.max_chars_per_token)
                refuse(tokens, max(1, params.max_output_tokens))
                raise

        return attentive

    encode_kwargs = plain(TokenizeParams.get_encode_kwargs)
    truncation = plain(TokenizeParams.max_truncation_tokens.fget)

    @wraps(encode_kwargs)
    def to_the_end(params):
        kwargs = encode_kwargs(params)
        if params.truncate_prompt_tokens is None:  # else the client's own
            return {"truncation": False, "add_special_tokens": kwargs["add_special_tokens"]}
        return kwargs

    @wraps(truncation)
    def within_buckets(params):
        most = truncation(params)
        return None if most is None else min(most, longest_prompt())

    TokenizeParams._token_len_check = explained(plain(TokenizeParams._token_len_check))
    TokenizeParams._text_len_check = explained(plain(TokenizeParams._text_len_check))
    TokenizeParams.get_encode_kwargs = to_the_end
    TokenizeParams.max_truncation_tokens = property(within_buckets)
