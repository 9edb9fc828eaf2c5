"""Stacks that take a list of sizes to compile: what each list means there, the rules that the
stack's own source or documentation states, and the file or the flags that it reads.

A rule names where it was read: a package of PyPI with file and line, a repository with a commit, or
a page. Nothing here is a stack's code.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from spyre_bench.choose.schemes import doublings, exponential
from spyre_bench.choose.stack import (
    CHUNKS,
    CONTEXTS,
    PROMPTS,
    WIDTHS,
    Deployment,
    Rule,
    SizeList,
    Sizes,
    Stack,
)
from spyre_bench.choose.stack_rules import (
    ascending,
    at_most,
    ends_at,
    listed,
    multiples,
    reaches,
    unique,
)

CHUNK_TOKENS = 128  # of a prompt in QEfficient, by its examples


def _rows(deployment: Deployment) -> int:
    return deployment.rows


def _context(deployment: Deployment) -> int:
    return deployment.context_tokens


def _step_tokens(deployment: Deployment) -> int:
    return deployment.step_tokens


def _rows_of_a_step(deployment: Deployment) -> int:
    """Of decode alone: a token for each of the rows."""
    return min(deployment.rows, deployment.step_tokens)


def _width_step(deployment: Deployment) -> int:
    return deployment.width_step


def _block(deployment: Deployment) -> int:
    return deployment.block_tokens


def _aligned_rows(deployment: Deployment) -> int:
    return -(-deployment.rows // deployment.width_step) * deployment.width_step


def _up_to(limit: int, *ranges: range | Sequence[int]) -> tuple[int, ...]:
    """Of these sizes those up to the limit, and the limit."""
    return tuple(sorted({it for sizes in ranges for it in sizes if it <= limit} | {limit}))


# --- vLLM -----------------------------------------------------------------------------------------


def _vllm_default(deployment: Deployment) -> tuple[int, ...]:
    limit = min(2 * deployment.rows, 512, deployment.step_tokens)
    sizes = {1, 2, 4, *range(8, 256, 8), *range(256, 513, 16), deployment.rows}
    sizes.add(deployment.step_tokens)
    return tuple(sorted(it for it in sizes if it <= limit))


VLLM = Stack(
    title="vLLM",
    lists=(SizeList(WIDTHS, "cudagraph_capture_sizes", _rows_of_a_step, _vllm_default),),
    rules=(
        unique(
            WIDTHS,
            "are dropped with a warning",
            "PyPI vllm 0.32.0: vllm/config/vllm.py:2460, 2527",
        ),
        at_most(
            WIDTHS,
            _step_tokens,
            "max_num_batched_tokens",
            "are dropped with a warning",
            "PyPI vllm 0.32.0: vllm/config/vllm.py:2461, 2527",
        ),
        reaches(
            WIDTHS,
            _rows_of_a_step,
            "max_num_seqs",
            "wider steps run without a graph",
            "PyPI vllm 0.32.0: vllm/config/vllm.py:2337",
        ),
    ),
    write=lambda sizes, deployment: _flags(
        max_num_seqs=deployment.rows,
        max_num_batched_tokens=deployment.step_tokens,
        compilation_config={"cudagraph_capture_sizes": list(sizes[WIDTHS])},
    ),
    paste="behind vllm serve MODEL",
    note="without draft tokens, whose steps are wider. A step with prompts in it that has more "
    "tokens than the largest size runs without a graph; vLLM's own list reaches 2 · max_num_seqs, "
    "at most 512, for their sake",
)


# --- SGLang ---------------------------------------------------------------------------------------


SGLANG = Stack(
    title="SGLang",
    lists=(
        SizeList(
            WIDTHS,
            "cuda_graph_bs_decode",
            _aligned_rows,
            lambda deployment: _up_to(
                deployment.rows,
                (1, 2, 4, 8, 12),
                range(16, 257, 8),
                range(272, 512, 16),
                range(512, deployment.rows + 1, 32),
            ),
            step=_width_step,
        ),
    ),
    rules=(
        multiples(
            WIDTHS,
            _width_step,
            "the ranks that attention is spread over,",
            "are dropped",
            "PyPI sglang 0.5.23: srt/model_executor/runner/base_cuda_graph_runner.py:99-100",
        ),
        at_most(
            WIDTHS,
            _aligned_rows,
            "max_running_requests",
            "are dropped",
            "PyPI sglang 0.5.23: srt/model_executor/runner/base_cuda_graph_runner.py:93-101",
        ),
        reaches(
            WIDTHS,
            _aligned_rows,
            "max_running_requests",
            "wider steps run without a graph",
            "PyPI sglang 0.5.23: srt/model_executor/runner/decode_cuda_graph_runner.py:887-891",
        ),
    ),
    write=lambda sizes, deployment: (
        f"--max-running-requests {deployment.rows} \\\n"
        f"--cuda-graph-bs-decode {' '.join(map(str, sizes[WIDTHS]))}\n"
    ),
    paste="behind python -m sglang.launch_server --model-path MODEL",
    note="versions before the split by phase call the flag --cuda-graph-bs; --cuda-graph-max-bs-"
    "decode is not needed, the largest of the list takes its place",
)


# --- TensorRT-LLM ---------------------------------------------------------------------------------


def _tensorrt_default(deployment: Deployment) -> tuple[int, ...]:
    """With padding enabled: 1, 2, 4, eights to 128, then steps of 64; at most 128 by itself."""
    limit = min(deployment.rows, 128)
    return _up_to(limit, (1, 2, 4), range(8, 129, 8))


TENSORRT_ARGS = "NVIDIA/TensorRT-LLM@0004396720: tensorrt_llm/llmapi/llm_args.py"

TENSORRT_LLM = Stack(
    title="TensorRT-LLM",
    lists=(SizeList(WIDTHS, "cuda_graph_config.batch_sizes", _rows_of_a_step, _tensorrt_default),),
    rules=(
        unique(WIDTHS, "are captured twice", f"{TENSORRT_ARGS} sorts them and keeps all"),
        at_most(
            WIDTHS,
            _rows_of_a_step,
            "max_batch_size or max_num_tokens",
            "the first of them is lowered to that and the others are dropped",
            "NVIDIA/TensorRT-LLM@1a0dc5f700: tensorrt_llm/_torch/pyexecutor/model_engine.py "
            "_filter_cuda_graph_batch_sizes",
        ),
        reaches(
            WIDTHS,
            _rows_of_a_step,
            "max_batch_size",
            "wider steps run without a graph",
            f"{TENSORRT_ARGS} enable_padding rounds up to the nearest of the list",
        ),
    ),
    write=lambda sizes, deployment: (
        f"max_batch_size: {deployment.rows}\n"
        f"max_num_tokens: {deployment.step_tokens}\n"
        f"cuda_graph_config:\n"
        f"  enable_padding: true\n"
        f"  batch_sizes: {list(sizes[WIDTHS])}\n"
    ),
    paste="in the file of trtllm-serve MODEL --extra_llm_api_options",
    note="left out, enable_padding is false, and a width that is not in the list then has no "
    "graph. Without draft tokens, which lower the limit. cuda_graph_config.max_batch_size must be "
    "the largest of the list, so it is left out",
)


# --- vllm-gaudi -----------------------------------------------------------------------------------


GAUDI_COMMON = "vllm-project/vllm-gaudi: vllm_gaudi/extension/bucketing/common.py generate_buckets"


def _gaudi_prompts(sizes: Sizes, deployment: Deployment) -> Iterator[str]:
    limit = min(deployment.context_tokens, deployment.step_tokens)
    above = [it for it in sizes[PROMPTS] if it > limit]
    if above:
        yield (
            f"prompts {listed(above)} are above max_model_len or max_num_batched_tokens, {limit}, "
            f"and left out: raise the setting or lower them"
        )
    if 1 in sizes[PROMPTS]:
        yield "a prompt of 1 token is read as a decode bucket: use a longer one"


def _gaudi_file(sizes: Sizes, deployment: Deployment) -> str:
    lines = [
        "# Prompt: (batch size, query tokens, context blocks). Decode: (batch size, 1, blocks).",
        f"(1, {list(sizes[PROMPTS])}, 0)",
    ]
    blocks = [-(-context // deployment.block_tokens) for context in sizes[CONTEXTS]]
    lines += [f"({width}, 1, {[width * count for count in blocks]})" for width in sizes[WIDTHS]]
    return "\n".join(lines) + "\n"


VLLM_GAUDI = Stack(
    title="vllm-gaudi",
    lists=(
        SizeList(
            PROMPTS,
            "prompt query",
            lambda deployment: min(deployment.context_tokens, deployment.step_tokens),
            lambda it: exponential(
                np.array([min(it.context_tokens, it.step_tokens)]), it.block_tokens
            ),
            step=_block,
        ),
        SizeList(WIDTHS, "decode batch size", _rows, None),
        SizeList(
            CONTEXTS,
            "decode blocks of a request",
            _context,
            None,
            step=_block,
        ),
    ),
    rules=(
        Rule("prompts fit a step and the model", GAUDI_COMMON, _gaudi_prompts),
        reaches(
            PROMPTS,
            lambda deployment: min(deployment.context_tokens, deployment.step_tokens),
            "the longest prompt of a step,",
            "longer ones are compiled while they wait",
            "vllm-project/vllm-gaudi: vllm_gaudi/extension/bucketing/common.py find_prompt_bucket",
        ),
        reaches(
            WIDTHS,
            _rows,
            "max_num_seqs",
            "wider steps are compiled while they wait",
            "vllm-project/vllm-gaudi: vllm_gaudi/extension/bucketing/common.py find_decode_bucket",
        ),
        at_most(WIDTHS, _rows, "max_num_seqs", "are never needed", GAUDI_COMMON),
        reaches(
            CONTEXTS,
            _context,
            "max_model_len",
            "longer requests are compiled for while they wait",
            "vllm-project/vllm-gaudi: vllm_gaudi/extension/bucketing/common.py find_decode_bucket",
        ),
    ),
    write=_gaudi_file,
    paste="in a file that VLLM_BUCKETING_FROM_FILE names",
    note="decode buckets are widths times contexts, and a width has blocks for that many requests "
    "of the longest context; prompts have no context blocks, so prefix caching and chunked prefill "
    "need more lines",
    grid=True,
)


# --- vllm-rbln ------------------------------------------------------------------------------------


VLLM_RBLN = Stack(
    title="vllm-rbln",
    lists=(
        SizeList(
            WIDTHS,
            "decode_batch_bucket_manual_buckets",
            _rows,
            lambda deployment: [deployment.rows],
        ),
    ),
    rules=(
        unique(WIDTHS, "the server refuses them", "PyPI vllm-rbln 0.12.0: config.py:170-171"),
        ends_at(
            WIDTHS,
            _rows,
            "max_num_seqs over the pipeline stages,",
            "PyPI vllm-rbln 0.12.0: v1/worker/bucketing/manual_bucketing_manager.py:36-41, "
            "v1/core/utils.py:77",
        ),
    ),
    write=lambda sizes, deployment: _flags(
        max_num_seqs=deployment.rows,
        additional_config={
            "decode_batch_bucket_strategy": "manual",
            "decode_batch_bucket_manual_buckets": list(sizes[WIDTHS]),
        },
    ),
    paste="behind vllm serve MODEL",
    note="rows are those of one pipeline stage: with stages, multiply --max-num-seqs by them",
)


# --- tpu-inference --------------------------------------------------------------------------------

TPU_FIRST_TOKENS = 16  # MIN_TOKEN_BUCKET


def _tpu_given(deployment: Deployment) -> tuple[int, ...]:
    """Powers of two from 16 up to the budget, and the budget rounded up to sixteens."""
    last = -(-deployment.step_tokens // TPU_FIRST_TOKENS) * TPU_FIRST_TOKENS
    return doublings(TPU_FIRST_TOKENS, last)


TPU_INFERENCE = Stack(
    title="tpu-inference",
    lists=(
        SizeList(
            WIDTHS,
            "compilation_sizes",
            _aligned_rows,
            _tpu_given,
            step=_width_step,
            always=_tpu_given,
        ),
    ),
    rules=(
        at_most(
            WIDTHS,
            lambda deployment: _tpu_given(deployment)[-1],
            "max_num_batched_tokens",
            "are compiled although no step needs them",
            "PyPI tpu-inference 0.32.0: runner/utils.py:229-253",
        ),
        multiples(
            WIDTHS,
            _width_step,
            "the data-parallel size",
            "are cut down to them",
            "PyPI tpu-inference 0.32.0: runner/tpu_runner.py:1123-1125",
        ),
    ),
    write=lambda sizes, deployment: _flags(
        max_num_seqs=deployment.rows,
        max_num_batched_tokens=deployment.step_tokens,
        additional_config={
            "compilation_sizes": sorted(set(sizes[WIDTHS]) - set(_tpu_given(deployment)))
        },
    ),
    paste="behind vllm serve MODEL",
    note="a decode step is padded in tokens, one per request; powers of two from 16 are compiled "
    "in any case (MIN_TOKEN_BUCKET 16, no VLLM_TPU_BUCKET_PADDING_GAP), the list adds to them",
)


# --- Neuron ---------------------------------------------------------------------------------------

NXDI = "aws-neuron/neuronx-distributed-inference: src/neuronx_distributed_inference"

NEURON = Stack(
    title="Neuron, NxD Inference",
    lists=(
        SizeList(
            PROMPTS,
            "context_encoding_buckets",
            _context,
            lambda deployment: doublings(128, deployment.context_tokens),
            step=_block,
            larger_by=1,
        ),
        SizeList(
            CONTEXTS,
            "token_generation_buckets",
            _context,
            lambda deployment: doublings(128, deployment.context_tokens),
            step=_block,
            larger_by=1,
        ),
    ),
    rules=tuple(
        rule
        for name, limit in ((PROMPTS, "max_context_length"), (CONTEXTS, "max_length"))
        for rule in (
            unique(name, "are compiled twice", f"{NXDI}/models/config.py sorts and keeps them"),
            at_most(
                name,
                _context,
                limit,
                "the configuration is refused",
                f"{NXDI}/models/config.py NeuronConfig.__init__, two assertions on the last bucket",
            ),
            reaches(
                name,
                _context,
                limit,
                "longer inputs are refused (or cut, with allow_input_truncation)",
                f"{NXDI}/models/model_wrapper.py get_target_bucket",
            ),
        )
    ),
    write=lambda sizes, _: (
        json.dumps(
            {
                "enable_bucketing": True,
                "context_encoding_buckets": list(sizes[PROMPTS]),
                "token_generation_buckets": list(sizes[CONTEXTS]),
            }
        )
        + "\n"
    ),
    paste="among the fields of NeuronConfig",
    note="an input as long as a bucket goes to the next one, but for the last: sizes are chosen "
    "for one token more than is needed",
)

NEURON_PAGE = (
    "awsdocs-neuron.readthedocs-hosted.com/en/v2.33.0/vllm-neuron/docs/guides/"
    "reference-configuration.html"
)

VLLM_NEURON = Stack(
    title="vLLM Neuron",
    lists=(
        SizeList(
            PROMPTS,
            "num_batched_tokens_buckets",
            _step_tokens,
            lambda deployment: doublings(128, deployment.step_tokens),
            step=_block,
        ),
        SizeList(
            WIDTHS, "num_seqs_buckets", _rows, lambda deployment: doublings(1, deployment.rows)
        ),
    ),
    rules=(
        ends_at(PROMPTS, _step_tokens, "max_num_batched_tokens", NEURON_PAGE),
        ends_at(WIDTHS, _rows, "max_num_seqs", NEURON_PAGE),
        ascending(PROMPTS, "the documentation's lists ascend", NEURON_PAGE),
        ascending(WIDTHS, "the documentation's lists ascend", NEURON_PAGE),
    ),
    write=lambda sizes, deployment: _flags(
        max_num_seqs=deployment.rows,
        max_num_batched_tokens=deployment.step_tokens,
        additional_config={
            "neuron_config": {
                "num_batched_tokens_buckets": list(sizes[PROMPTS]),
                "num_seqs_buckets": list(sizes[WIDTHS]),
            }
        },
    ),
    paste="behind vllm serve MODEL",
    note="prompts longer than a step come in segments of max_num_batched_tokens",
)


# --- QEfficient -----------------------------------------------------------------------------------

QEFF = "quic/efficient-transformers@7cbf0ba1b2: QEfficient/utils/check_ccl_specializations.py"
QEFF_FIRST = 1024  # CCL_MIN_CTX_LEN
QEFF_APART = 32  # CCL_UNIQNE_STEP


def _qeff_last_chunk(deployment: Deployment) -> int:
    return max(1, deployment.context_tokens - 1)


def _qeff_common(sizes: Sizes, _: Deployment) -> Iterator[str]:
    common = sorted(set(sizes[CHUNKS]) & set(sizes[CONTEXTS]))
    if common:
        yield (
            f"chunks and contexts have {listed(common)} in common, and the compiler takes a length "
            f"once: the ones of chunks are lowered, so that chunks up to them need the next; move "
            f"them by {QEFF_APART}"
        )


def _qeff_small(sizes: Sizes, deployment: Deployment) -> Iterator[str]:
    first = min(QEFF_FIRST, _qeff_last_chunk(deployment))
    for name in (CHUNKS, CONTEXTS):
        below = [it for it in sizes[name] if it < first]
        if below:
            yield f"{name} {listed(below)} are below {first} and raised to it: leave them out"


def _qeff_step(deployment: Deployment) -> int:
    return min(QEFF_FIRST, deployment.context_tokens)


QEFFICIENT = Stack(
    title="QEfficient",
    lists=(
        SizeList(
            CHUNKS,
            "comp_ctx_lengths_prefill",
            _qeff_last_chunk,
            lambda deployment: [_qeff_last_chunk(deployment)],
            step=_qeff_step,
        ),
        SizeList(
            CONTEXTS,
            "comp_ctx_lengths_decode",
            _context,
            lambda deployment: [deployment.context_tokens],
            step=_qeff_step,
        ),
    ),
    rules=(
        Rule("chunks and contexts have no length in common", QEFF, _qeff_common),
        Rule("lengths are 1024 or more", QEFF, _qeff_small),
        *(
            rule
            for name in (CHUNKS, CONTEXTS)
            for rule in (
                at_most(name, _context, "ctx_len", "are lowered to it", QEFF),
                unique(name, "are merged", QEFF),
            )
        ),
        reaches(CONTEXTS, _context, "ctx_len", "it is added to the list", QEFF),
        reaches(CHUNKS, _qeff_last_chunk, "ctx_len less 1,", "ctx_len is added to the list", QEFF),
    ),
    write=lambda sizes, deployment: (
        json.dumps(
            {
                "ctx_len": deployment.context_tokens,
                "comp_ctx_lengths_prefill": list(sizes[CHUNKS]),
                "comp_ctx_lengths_decode": list(sizes[CONTEXTS]),
            }
        )
        + "\n"
    ),
    paste="among the arguments of compile(), with ccl_enabled in qaic_config",
    note=f"the compiler takes a length once, so lengths of prefill that decode has too are moved "
    f"up by {QEFF_APART}, and the last one is 1 below ctx_len",
)


def _flags(**settings: int | Mapping[str, object]) -> str:
    """As vLLM's command line takes them, one per line."""
    lines = []
    for name, value in settings.items():
        text = str(value) if isinstance(value, int) else f"'{json.dumps(value)}'"
        lines.append(f"--{name.replace('_', '-')} {text}")
    return " \\\n".join(lines) + "\n"


STACKS: dict[str, Stack] = {
    "vllm": VLLM,
    "sglang": SGLANG,
    "tensorrt-llm": TENSORRT_LLM,
    "vllm-gaudi": VLLM_GAUDI,
    "vllm-rbln": VLLM_RBLN,
    "tpu-inference": TPU_INFERENCE,
    "neuron": NEURON,
    "vllm-neuron": VLLM_NEURON,
    "qefficient": QEFFICIENT,
}
"""Name on the command line -> the stack."""


def named(name: str) -> Stack:
    """Raises ValueError with the names there are."""
    if name not in STACKS:
        near = difflib.get_close_matches(name, STACKS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"no stack {name!r}: there are {', '.join(STACKS)}.{meant}")
    return STACKS[name]
