"""Padding, dummy rows and old cache contents never show; what does not fit is refused."""

import pytest

from spyre_bench.shapes import Bucket

pytestmark = pytest.mark.engine

BUCKETS = "3,64,8 2,128,5"
GARBAGE = (0, 7, 200)


@pytest.fixture(scope="module")
def unpadded(tiny_llama, tiny_granite):
    """unpadded(directory, prompt, count): greedy tokens and logits of Hugging Face, alone."""
    import torch
    from transformers import AutoModelForCausalLM

    models = {
        path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for path in (tiny_llama, tiny_granite)
    }

    @torch.inference_mode()
    def run(directory, prompt, count):
        tokens, rows = list(prompt), []
        for _ in range(count):
            rows.append(models[directory](torch.tensor([tokens])).logits[0, -1])
            tokens.append(int(rows[-1].argmax()))
        return tokens[len(prompt) :], torch.stack(rows)

    return run


def prompt(length: int) -> list[int]:
    return [(7 * index + 3 * length) % 250 + 8 for index in range(length)]


@pytest.mark.parametrize("compile_backend", ["eager", "inductor"])
@pytest.mark.parametrize("compile_scope", ["layer", "model"])
@pytest.mark.parametrize("architecture", ["tiny_llama", "tiny_granite"])
def test_padded_equals_unpadded_for_every_bucket_and_fill_whatever_fills_the_rest(
    engine, unpadded, request, architecture, compile_backend, compile_scope
):
    import torch

    directory = request.getfixturevalue(architecture)
    model = engine(directory, BUCKETS, compile_backend=compile_backend, compile_scope=compile_scope)
    for bucket in model.buckets:
        lengths = (bucket.prompt_length - 1, 1, bucket.prompt_length)
        for fill in range(1, bucket.batch_size + 1):
            prompts = [prompt(length) for length in lengths[:fill]]
            wanted = [unpadded(directory, one, bucket.new_tokens) for one in prompts]
            for model.pad_token in GARBAGE:
                logits = model.prefill(bucket, prompts)
                for step in range(bucket.new_tokens):
                    if step:
                        logits = model.decode([tokens[step - 1] for tokens, _ in wanted])
                    assert logits.shape == (fill, model.vocab_size)
                    assert logits.argmax(-1).tolist() == [tokens[step] for tokens, _ in wanted]
                    expected = torch.stack([rows[step] for _, rows in wanted])
                    assert (logits - expected).abs().max() < 1e-4


@pytest.fixture
def llama(engine, tiny_llama):
    return engine(tiny_llama, BUCKETS, compile_backend="eager", compile_scope="layer")


def test_a_bucket_that_was_not_warmed_is_an_error_that_names_it(llama):
    with pytest.raises(RuntimeError, match=r"bucket 2,64,8 was not warmed up.*2,128,5 3,64,8"):
        llama.prefill(Bucket(2, 64, 8), [[1]])


def test_a_batch_cannot_outlive_its_bucket(llama):
    llama.prefill(Bucket(2, 128, 5), [[9]])
    for _ in range(4):
        llama.decode([9])
    with pytest.raises(RuntimeError, match="2,128,5 has given its 5 new tokens"):
        llama.decode([9])


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([], "0 prompts for bucket 3,64,8: 1 to 3"),
        ([[1]] * 4, "4 prompts"),
        ([[1], []], "prompt 1 has 0 tokens"),
        ([[1] * 65], "prompt 0 has 65 tokens, bucket 3,64,8 takes 1 to 64"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_and_the_running_batch_goes_on(llama, prompts, words):
    bucket = Bucket(3, 64, 8)
    llama.prefill(bucket, [prompt(5)])
    expected = llama.decode([9])
    llama.prefill(bucket, [prompt(5)])
    with pytest.raises(ValueError, match=words):
        llama.prefill(bucket, prompts)
    assert llama.decode([9]).equal(expected)


def test_a_decode_takes_one_token_a_row(llama):
    llama.prefill(Bucket(3, 64, 8), [[9], [10]])
    with pytest.raises(ValueError, match="1 tokens for a batch of 2 rows"):
        llama.decode([9])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"compile_backend": "inducto"}, "'inducto' is unknown: use one of eager, inductor"),
        ({"compile_scope": "graph"}, "'graph' is unknown: use one of layer, model"),
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
        ({"compile_backend": "sendnn"}, "needs IBM's package torch_sendnn.*install"),
        ({"require_precompiled": True}, "no artefact_directory"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_the_remedy(tiny_llama, setting, words):
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.shapes import BucketSet

    with pytest.raises(ValueError, match=words):
        EngineConfig(model_directory=tiny_llama, buckets=BucketSet.parse("1,64,2"), **setting)


def test_a_bucket_beyond_the_models_context_is_refused(engine, tiny_llama):
    with pytest.raises(ValueError, match=r"1,512,2 spans 514 tokens .* context of 512"):
        engine(tiny_llama, "1,512,2", compile_backend="eager")
