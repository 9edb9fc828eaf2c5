"""SmolLM2 through compiled buckets and shapes against Hugging Face transformers, token by token."""

import pytest

from spyre_bench.shapes import Bucket
from tests.engine.prompts import prompts

pytestmark = [pytest.mark.engine, pytest.mark.slow]

NEW_TOKENS = 32
END = 2  # <|im_end|>, masked in the reference too
BUCKETS = (Bucket(4, 64, NEW_TOKENS), Bucket(4, 128, NEW_TOKENS))


@pytest.fixture(scope="module")
def tokenized(smollm2):
    from transformers import AutoTokenizer

    return prompts(AutoTokenizer.from_pretrained(smollm2))


@pytest.fixture(scope="module")
def reference(smollm2, tokenized):
    """Greedy tokens and float32 logits [NEW_TOKENS, V] of each prompt, alone and unpadded."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    answers = []
    for prompt in tokenized:
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
        )
        logits = torch.cat(out.logits)
        # min_new_tokens forbids the end token: the engine's greedy choice must do the same
        logits[:, model.generation_config.eos_token_id] = float("-inf")
        answers.append((logits.argmax(-1).tolist(), logits))
    return answers


def batches(tokenized):
    """Every prompt's index, with the bucket that its batch runs in; the last ones are not full."""
    for bucket in BUCKETS:
        shorter = bucket.prompt_length - 64
        members = [i for i, p in enumerate(tokenized) if shorter < len(p) <= bucket.prompt_length]
        for start in range(0, len(members), bucket.batch_size):
            yield bucket, members[start : start + bucket.batch_size]


def test_greedy_tokens_and_logprobs_equal_hugging_face(engine, smollm2, tokenized, reference):
    import torch

    model = engine(smollm2, " ".join(map(str, BUCKETS)), compile_backend="inductor")
    mismatches, worst, served = [], 0.0, 0
    for bucket, members in batches(tokenized):
        logits = model.prefill(bucket, [tokenized[i] for i in members])
        for step in range(NEW_TOKENS):
            if step:
                # the reference's token goes in, so that one mismatch does not hide the next
                logits = model.decode([reference[i][0][step - 1] for i in members])
            logits[:, END] = float("-inf")
            for row, index in enumerate(members):
                expected, wanted = reference[index][0][step], reference[index][1][step]
                token = int(logits[row].argmax())
                if token != expected:
                    margin = float(torch.subtract(*wanted.topk(2).values))
                    mismatches.append((len(tokenized[index]), step, token, expected, margin))
                top = wanted.topk(20).indices
                gap = logits[row].log_softmax(-1)[top] - wanted.log_softmax(-1)[top]
                worst = max(worst, float(gap.abs().max()))
        served += len(members)
    assert served == 16
    assert not mismatches, f"(prompt tokens, step, ours, theirs, top-2 margin): {mismatches}"
    assert worst < 1e-3


def test_requests_that_join_and_leave_equal_hugging_face(smollm2, tokenized, reference):
    """A request comes at every second step; half of them once more, to hit prefixes."""
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.paged_causal_lm import PagedCausalLM
    from spyre_bench.engine.warmup import warm_up
    from spyre_bench.shape_set import ShapeSet
    from tests.engine.paged_host import PagedHost, outputs_of

    shapes = ShapeSet.parse("64,192", "2,128 6,192", blocks=40)
    model = PagedCausalLM(EngineConfig(model_directory=smollm2, shapes=shapes))
    warm_up(model, progress=False)
    asked = [*range(16), *range(8, 16)]
    requests = [
        (2 * place, tokenized[index], NEW_TOKENS - place % 3) for place, index in enumerate(asked)
    ]
    said = outputs_of(PagedHost(model, never=END), requests)
    assert said == [
        reference[index][0][:count] for index, (_, _, count) in zip(asked, requests, strict=True)
    ]
