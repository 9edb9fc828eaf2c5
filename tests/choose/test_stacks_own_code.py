"""Exports read by the stacks' own code, where it is installed: vLLM with the tests' environment,
the others with their wheels on PYTHONPATH and VLLM_PLUGINS=spyre (docs/STACKS.md)."""

import argparse
import json
import shlex
from types import SimpleNamespace

import numpy as np
import pytest

from spyre_bench.choose.export import Needs, export
from spyre_bench.choose.stack import WIDTHS, Deployment
from spyre_bench.choose.stacks import STACKS

STEPS = Needs(None, np.array([3, 3, 7, 12, 30]), None, np.ones(5))


def exported(name, deployment):
    chosen = export(STACKS[name], STEPS, deployment)
    return chosen, list(chosen.sizes[WIDTHS])


def arguments(text):
    return shlex.split(text.replace("\\\n", " "))


# --- vLLM -----------------------------------------------------------------------------------------


def captured(rows, step_tokens, **given):
    """What vLLM's own configuration makes of capture sizes for a CUDA device."""
    from vllm.config import CompilationConfig, CUDAGraphMode, VllmConfig

    compilation = CompilationConfig(cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE, **given)
    config = SimpleNamespace(
        compilation_config=compilation,
        model_config=SimpleNamespace(enforce_eager=False),
        scheduler_config=SimpleNamespace(max_num_seqs=rows, max_num_batched_tokens=step_tokens),
        uniform_decode_query_len=1,
        performance_mode="balanced",
    )
    VllmConfig._set_cudagraph_sizes(config)
    return compilation.cudagraph_capture_sizes


@pytest.mark.vllm
@pytest.mark.parametrize(("rows", "step_tokens"), [(32, 8192), (256, 2048), (40, 64)])
def test_vllm_captures_the_exported_sizes_as_they_are(rows, step_tokens):
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    chosen, sizes = exported("vllm", Deployment(rows, step_tokens=step_tokens))
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    read = parser.parse_args(arguments(chosen.text))
    assert read.compilation_config.cudagraph_capture_sizes == sizes
    assert (read.max_num_seqs, read.max_num_batched_tokens) == (rows, step_tokens)
    assert captured(rows, step_tokens, cudagraph_capture_sizes=list(sizes)) == sizes


@pytest.mark.vllm
def test_vllm_drops_what_the_lint_says_it_drops():
    for sizes in ([4, 4, 32], [4, 32, 128]):
        kept = captured(32, 64, cudagraph_capture_sizes=list(sizes))
        assert kept == sorted({it for it in sizes if it <= 64})
        said = STACKS["vllm"].lint({WIDTHS: sizes}, Deployment(32, step_tokens=64))
        assert ["dropped" in str(it) for it in said] == [True]


@pytest.mark.vllm
@pytest.mark.parametrize("rows", [1, 3, 24, 100, 200, 256, 400, 512, 1000])
@pytest.mark.parametrize("step_tokens", [64, 300, 2048, 8192])
def test_vllm_captures_by_itself_what_we_say_it_does(rows, step_tokens):
    assert captured(rows, step_tokens) == list(
        STACKS["vllm"].lists[0].default(Deployment(rows, step_tokens=step_tokens))
    )


# --- with their wheels on PYTHONPATH --------------------------------------------------------------


def test_vllm_rbln_takes_the_exported_sizes_and_refuses_what_the_lint_refuses():
    config = pytest.importorskip("vllm_rbln.config")
    bucketing = pytest.importorskip("vllm_rbln.v1.worker.bucketing")

    def buckets(additional, rows):
        read = config.build_rbln_config(additional)
        return bucketing.get_bucketing_manager(
            read.decode_batch_bucket_strategy,
            max_batch_size=rows,
            manual_buckets=read.decode_batch_bucket_manual_buckets,
        ).decode_batch_buckets

    chosen, sizes = exported("vllm-rbln", Deployment(32))
    words = dict(zip(*[iter(arguments(chosen.text))] * 2, strict=True))
    additional = json.loads(words["--additional-config"])
    assert buckets(additional, 32) == sizes
    for bad in ([4, 4, 32], [4, 16], [4, 64]):
        assert STACKS["vllm-rbln"].lint({WIDTHS: bad}, Deployment(32))
        with pytest.raises(ValueError, match=r"unique|must be equal to the max batch size"):
            buckets(additional | {"decode_batch_bucket_manual_buckets": bad}, 32)


def test_sglang_takes_the_exported_flags():
    server_args = pytest.importorskip("sglang.srt.server_args")
    parser = argparse.ArgumentParser()
    server_args.ServerArgs.add_cli_args(parser)
    chosen, sizes = exported("sglang", Deployment(32))
    read = parser.parse_args(["--model-path", "model", *arguments(chosen.text)])
    assert (read.cuda_graph_bs_decode, read.max_running_requests) == (sizes, 32)


@pytest.mark.parametrize("rows", [1, 3, 24, 100, 256, 400, 512, 1000])
def test_sglang_captures_by_itself_what_we_say_it_does(rows, monkeypatch):
    hook = pytest.importorskip("sglang.srt.arg_groups.cuda_graph_hook")
    settings = SimpleNamespace(disable_cuda_graph_padding=False, speculative_algorithm=None)
    monkeypatch.setattr(hook, "resolving_view", lambda _: settings)
    assert hook.generate_decode_cuda_graph_batch_sizes(None, rows) == list(
        STACKS["sglang"].lists[0].default(Deployment(rows))
    )


@pytest.mark.parametrize("step_tokens", [16, 20, 100, 2048, 8000, 16_640])
def test_tpu_inference_compiles_the_exported_sizes_beside_its_own(step_tokens):
    utils = pytest.importorskip("tpu_inference.runner.utils")
    deployment = Deployment(min(32, step_tokens), step_tokens=step_tokens)
    own = list(STACKS["tpu-inference"].lists[0].default(deployment))
    assert utils.build_token_paddings(16, step_tokens, 0) == own
    if step_tokens >= 32:
        chosen, sizes = exported("tpu-inference", deployment)
        words = dict(zip(*[iter(arguments(chosen.text))] * 2, strict=True))
        added = json.loads(words["--additional-config"])["compilation_sizes"]
        assert utils.build_token_paddings(16, step_tokens, 0, added) == sizes
