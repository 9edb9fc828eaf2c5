"""Continuous batching through vLLM, offline: the same tokens whatever joins, hits or is preempted,
and every block given back."""

from __future__ import annotations

import random

import pytest

from tests.plugin.conftest import platform_as_before

SHAPES = {"prefill_shapes": "64,192 128,256", "decode_shapes": "2,256 4,128 6,64"}
LENGTHS = (1, 63, 64, 65, 127, 128, 129, 191, 192, 193)  # beside every compiled boundary
PROMPTS = ["a prompt", "and another one", "a third", "one that is somewhat longer than those"]


def prompt_of(length: int, seed: int = 0) -> dict:
    ids = random.Random(f"{length} {seed}").choices(range(3, 60), k=length)
    return {"prompt_token_ids": ids}


def greedy(count: int):
    from vllm import SamplingParams

    return SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tiny_llama):
    """engine(blocks, rules): an LLM in this process."""
    from vllm import LLM

    from tests.plugin.force_token import ForceToken

    made = {}

    def make(blocks: int = 40, **rules):
        key = (blocks, *sorted(rules.items()))
        if key not in made:
            spyre = SHAPES | {"batching": "continuous", "compile_backend": "eager"}
            made[key] = LLM(
                str(tiny_llama),
                logits_processors=[ForceToken],
                num_gpu_blocks_override=blocks,
                additional_config={"spyre": spyre | {"rules": rules}},
            )
        return made[key]

    with platform_as_before():
        yield make


@pytest.fixture(scope="module")
def said(tiny_llama):
    """said(prompt, count): Hugging Face's greedy tokens, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()

    def tokens(prompt: dict, count: int) -> list[int]:
        ids = torch.tensor([prompt["prompt_token_ids"]])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            eos_token_id=None,
        )
        return out[0, ids.shape[1] :].tolist()

    return tokens


def scheduler_of(llm):
    return llm.llm_engine.engine_core.engine_core.scheduler


def free_blocks(llm) -> int:
    return scheduler_of(llm).kv_cache_manager.block_pool.get_num_free_blocks()


RULES = [
    (40, {}),
    (7, {"admission": "preempt"}),
    (40, {"max_batch_context_tokens": 384}),
    (40, {"layout": "rectangular", "chunk_tokens": 128}),
]


@pytest.mark.parametrize(("blocks", "rules"), RULES, ids=["plain", "preempt", "pause", "rectangle"])
def test_prompts_beside_every_boundary_say_what_hugging_face_says(engine, said, blocks, rules):
    llm = engine(blocks, **rules)
    prompts = [prompt_of(length) for length in LENGTHS]
    counts = [3 + place % 5 * 12 for place in range(len(prompts))]
    outputs = llm.generate(prompts, [greedy(count) for count in counts], use_tqdm=False)
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    assert tokens == [said(*asked) for asked in zip(prompts, counts, strict=True)]
    assert free_blocks(llm) == blocks - 1
    if "admission" in rules:
        assert scheduler_of(llm).counts.totals["preemptions"] > 0


def test_a_hit_is_counted_as_it_is_and_changes_no_token(engine, said):
    llm = engine()
    long = prompt_of(193, seed=5)["prompt_token_ids"]
    asked = [long[:129], long, long[:64] + prompt_of(30, 6)["prompt_token_ids"], long[:128]]
    hits = []
    for ids in asked:
        prompt = {"prompt_token_ids": ids}
        (output,) = llm.generate([prompt], greedy(4), use_tqdm=False)
        assert list(output.outputs[0].token_ids) == said(prompt, 4)
        hits.append(output.num_cached_tokens)
    assert hits == [0, 128, 64, 64]


def test_a_request_that_no_context_holds_is_refused_with_the_setting_that_would(engine):
    llm = engine()
    with pytest.raises(ValueError, match=r"longest that is compiled has 256.*context of 320"):
        llm.generate([prompt_of(250)], greedy(20), use_tqdm=False)


def parameters():
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    common = {"max_tokens": 12, "temperature": 0}
    drawn = {"max_tokens": 12, "temperature": 1.0, "seed": 7}
    return {
        "greedy": SamplingParams(**common),
        "seed": SamplingParams(**drawn),
        "top_k": SamplingParams(**drawn, top_k=5),
        "top_p": SamplingParams(**drawn, top_p=0.5),
        "min_p": SamplingParams(**drawn, min_p=0.2),
        "n": SamplingParams(**drawn, n=3),
        "repetition": SamplingParams(**common, repetition_penalty=1.5),
        "presence": SamplingParams(**common, presence_penalty=1.5),
        "frequency": SamplingParams(**common, frequency_penalty=1.5),
        "min_tokens": SamplingParams(**common, min_tokens=8),
        "bias": SamplingParams(**common, logit_bias={5: 3.0}),
        "bad_words": SamplingParams(**common, bad_words=["a"]),
        "logprobs": SamplingParams(**common, logprobs=3),
        "allowed": SamplingParams(**common, allowed_token_ids=[5, 6, 7, 8]),
        "regex": SamplingParams(
            **common, structured_outputs=StructuredOutputsParams(regex="[ab]{3,9}")
        ),
    }


NAMES = ("greedy", "seed", "top_k", "top_p", "min_p", "n", "repetition", "presence", "frequency")
NAMES += ("min_tokens", "bias", "bad_words", "logprobs", "allowed", "regex")


def what(output) -> list:
    return [
        (tuple(one.token_ids), [sorted(place) for place in one.logprobs or ()])
        for one in output.outputs
    ]


def test_every_parameter_gives_the_same_tokens_whatever_joins(engine):
    """All of them together, in an order that mixes their prompts, against each one alone."""
    llm = engine(40, decode_between=0)
    chosen = parameters()
    assert tuple(chosen) == NAMES
    asked = [(PROMPTS[place % 4], name) for place, name in enumerate(NAMES)]
    together = llm.generate(
        [prompt for prompt, _ in asked], [chosen[name] for _, name in asked], use_tqdm=False
    )
    for (prompt, name), output in zip(asked, together, strict=True):
        (alone,) = llm.generate([prompt], parameters()[name], use_tqdm=False)
        assert what(alone) == what(output), name


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gives_the_tokens_of_static_batching(engine, llm, name):
    (static,) = llm.generate([PROMPTS[3]], parameters()[name], use_tqdm=False)
    (continuous,) = engine().generate([PROMPTS[3]], parameters()[name], use_tqdm=False)
    assert what(continuous) == what(static)


@pytest.fixture
def triton(monkeypatch):
    """As where Triton is installed and CUDA_VISIBLE_DEVICES hides the GPUs."""
    import vllm.config.vllm
    import vllm.v1.sample.ops.topk_topp_sampler
    from vllm import triton_utils

    for module in (triton_utils, vllm.config.vllm, vllm.v1.sample.ops.topk_topp_sampler):
        monkeypatch.setattr(module, "HAS_TRITON", True)


@pytest.mark.parametrize("comes_back_as_new", [False, True])
def test_who_is_preempted_goes_on_as_in_a_large_pool_whatever_triton_the_host_has(
    engine, triton, monkeypatch, comes_back_as_new
):
    from vllm import SamplingParams

    long = {"max_tokens": 60, "ignore_eos": True}
    asked = [
        SamplingParams(**long, temperature=1.0, seed=7),
        SamplingParams(**long, temperature=1.0, seed=8, top_p=0.5),
        SamplingParams(**long, temperature=0, repetition_penalty=1.5),
        SamplingParams(**long, temperature=0, presence_penalty=1.5),
    ]
    prompts = [prompt_of(100, seed) for seed in range(len(asked))]
    small = engine(7, admission="preempt", decode_between=0)  # built where Triton seems to be
    scheduler = scheduler_of(small)
    assert not scheduler.use_v2_model_runner
    monkeypatch.setattr(scheduler, "use_v2_model_runner", comes_back_as_new)
    before = scheduler.counts.totals["preemptions"]
    preempted = small.generate(prompts, asked, use_tqdm=False)
    assert scheduler.counts.totals["preemptions"] > before
    large = engine().generate(prompts, asked, use_tqdm=False)
    for some, other in zip(preempted, large, strict=True):
        assert what(some) == what(other)


def test_an_abort_at_any_moment_gives_the_blocks_back(engine):
    llm = engine()
    core = llm.llm_engine
    for steps in range(8):
        for name in "abcd":
            core.add_request(f"{name}{steps}", prompt_of(150, steps), greedy(20))
        for _ in range(steps):
            core.step()
        core.abort_request([f"a{steps}", f"c{steps}"])
        while core.has_unfinished_requests():
            core.step()
        core.step()
        assert free_blocks(llm) == 39


def test_a_request_that_fails_in_the_sampler_ends_alone_and_leaves_no_block(engine, said):
    from vllm import SamplingParams

    llm = engine()
    fails = SamplingParams(max_tokens=6, temperature=0, extra_args={"force_token": 10**6})
    prompts = [prompt_of(70), prompt_of(20), prompt_of(100)]
    outputs = llm.generate(prompts, [greedy(6), fails, greedy(9)], use_tqdm=False)
    assert list(outputs[0].outputs[0].token_ids) == said(prompts[0], 6)
    assert list(outputs[2].outputs[0].token_ids) == said(prompts[2], 9)
    assert outputs[1].outputs[0].finish_reason == "error"
    assert free_blocks(llm) == 39
