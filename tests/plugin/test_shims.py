"""Each shim still has its reason. A test that fails here says what can be deleted."""

import subprocess
import sys

import pytest
import zmq


def ends_quietly(preparation: str) -> bool:
    """Whether vLLM's clean-up of an engine passes in a fresh process, after some preparation."""
    code = (
        f"from spyre_bench.plugin import shims\n{preparation}\n"
        "from vllm.distributed.parallel_state import cleanup_dist_env_and_memory\n"
        "cleanup_dist_env_and_memory()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_without_the_shim_an_engine_ends_with_an_error():
    import torch

    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator: the shim does nothing here")
    assert ends_quietly("shims.make_shutdown_quiet()")
    assert not ends_quietly(""), "vLLM mended it: delete make_shutdown_quiet and its call"


def test_without_the_shim_a_function_of_vllms_layers_compiles_itself():
    code = (
        "from vllm.model_executor.layers import vocab_parallel_embedding as module\n"
        "assert hasattr(module.get_masked_input_and_mask, '_torchdynamo_orig_callable')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == 0, "vLLM mended it: delete leave_compiling_to_the_engine and its call"


@pytest.fixture
def address(tmp_path) -> str:
    return f"ipc://{tmp_path}/socket"


def test_without_the_shim_ctrl_c_is_swallowed_while_the_engine_starts(address):
    from vllm.utils.network_utils import zmq_socket_ctx

    swallowed = False
    with zmq_socket_ctx(address, zmq.ROUTER, bind=True):
        swallowed = True
        raise KeyboardInterrupt
    assert swallowed, "vLLM mended it: delete let_ctrl_c_through and its call"


def test_with_the_shim_ctrl_c_gets_through(address, monkeypatch):
    from vllm.v1.engine import utils

    from spyre_bench.plugin.shims import let_ctrl_c_through

    monkeypatch.setattr(utils, "zmq_socket_ctx", utils.zmq_socket_ctx)  # put back afterwards
    let_ctrl_c_through()
    with (
        pytest.raises(KeyboardInterrupt),
        utils.zmq_socket_ctx(address, zmq.ROUTER, bind=True),
    ):
        raise KeyboardInterrupt


def test_without_the_shim_a_server_spawns_its_engine(monkeypatch):
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.system_utils import get_mp_context

    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")  # so that it is put back
    monkeypatch.delenv("VLLM_WORKER_MULTIPROC_METHOD")
    cli_env_setup()
    method = get_mp_context().get_start_method()
    assert method == "spawn", "vLLM forks: delete fork_the_engine and its call"


HOLDS_THE_PORT = """
import socket

def engine(pipe):
    pipe.send("runs")
    pipe.recv()

from spyre_bench.plugin import shims
from vllm.v1.engine import utils
shims.fork_the_engine()
context = utils.get_mp_context()
ours, theirs = context.Pipe()
with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
    process = context.Process(target=engine, args=(theirs,))
    process.start()
    ours.recv()
socket.create_server(("127.0.0.1", port)).close()
ours.send("end")
process.join()
"""


def test_with_the_shim_the_engine_is_a_fork_that_does_not_hold_the_servers_port():
    done = subprocess.run([sys.executable, "-c", HOLDS_THE_PORT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_the_shim_a_prompt_as_long_as_the_context_is_granted_no_token():
    from vllm.entrypoints.serve.utils import api_utils

    from spyre_bench.plugin.shims import watch_max_tokens

    seen = []
    watch_max_tokens(lambda prompt_tokens, reason: seen.append((prompt_tokens, reason)))
    plain = api_utils.get_max_tokens.__wrapped__
    assert plain(320, 8, 320, {}) == 0, "vLLM grants a token: delete that line of the shim"
    assert api_utils.get_max_tokens(320, 8, 320, {}) == 1
    assert api_utils.get_max_tokens(320, 8, 100, {}) == 8
    assert api_utils.get_max_tokens(320, 400, 100, {}) == plain(320, 400, 100, {})
    assert api_utils.get_max_tokens(320, None, 100, {"max_tokens": 400}) < 400
    assert api_utils.get_max_tokens(320, None, 100, {}) == plain(320, None, 100, {})
    assert seen == [(320, "max_tokens"), (100, "max_tokens"), (100, "default")]


def test_without_the_shim_options_that_nobody_gave_are_filled_in_first(tiny_llama, monkeypatch):
    from vllm.engine.arg_utils import EngineArgs

    from spyre_bench.plugin.platform import SpyrePlatform
    from spyre_bench.plugin.shims import watch_options

    monkeypatch.setattr(SpyrePlatform, "_config", None)
    seen = []
    monkeypatch.setattr(
        SpyrePlatform, "_judge_options", lambda given: seen.append(given.max_num_seqs)
    )
    monkeypatch.setattr(EngineArgs, "create_model_config", EngineArgs.create_model_config)
    watch_options(SpyrePlatform._judge_options)
    given = EngineArgs(str(tiny_llama))
    given.create_engine_config()
    assert seen == [None]
    assert given.max_num_seqs is not None, "vLLM leaves options as given: delete watch_options"


def test_without_the_shim_a_prompt_beyond_the_context_meets_vllms_own_words(monkeypatch):
    from vllm.exceptions import VLLMValidationError
    from vllm.renderers.params import TokenizeParams

    from spyre_bench.plugin.shims import explain_long_prompts

    for name in ("_token_len_check", "_text_len_check", "get_encode_kwargs"):
        monkeypatch.setattr(TokenizeParams, name, getattr(TokenizeParams, name))  # put back after
    truncation = TokenizeParams.max_truncation_tokens
    monkeypatch.setattr(TokenizeParams, "max_truncation_tokens", truncation)
    seen = []
    explain_long_prompts(lambda *asked: seen.append(asked), lambda: 192)
    check = TokenizeParams._token_len_check
    params = TokenizeParams(max_total_tokens=224)
    with pytest.raises(VLLMValidationError, match="maximum context length"):
        check.__wrapped__(params, None, [5] * 225)
    with pytest.raises(VLLMValidationError, match="maximum context length"):
        check(params, None, [5] * 225)
    assert seen == [(225, 1)]
    assert check(params, None, [5] * 224) == [5] * 224
    assert TokenizeParams.get_encode_kwargs.__wrapped__(params)["max_length"] == 225, (
        "vLLM counts to the end: delete that part of the shim"
    )
    assert not params.get_encode_kwargs()["truncation"]
