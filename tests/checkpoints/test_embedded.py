"""The embedded model is SmolLM2-135M-Instruct to the last bit, and stops where it should."""

import numpy as np
import pytest

from spyre_bench.checkpoints import embedded

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def model(smollm2):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2)


def chat(tokenizer, text: str):
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )


def test_a_chat_answer_is_right_and_ends_by_itself(tokenizer, model):
    prompt = chat(tokenizer, "What is the capital of France?")
    tokens = model.generate(**prompt, max_new_tokens=64, do_sample=False)[0]
    answer = tokenizer.decode(tokens[prompt["input_ids"].shape[1] :])
    assert "Paris" in answer
    assert answer.endswith("<|im_end|>")
    assert answer.count("<|im_end|>") == 1


def test_the_special_tokens_are_those_the_file_states(tokenizer, model):
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.unk_token, tokenizer.unk_token_id) == ("<|endoftext|>", 0)
    for config in model.config, model.generation_config:
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)


def test_text_becomes_the_tokens_of_smollm2(tokenizer):
    text = "Hello world 1234 don't <|im_end|>\n\n  é日本"
    # as transformers 5.19 reads them from the GGUF file itself
    tokens = [19556, 905, 216, 33, 34, 35, 36, 1326, 982, 216, 2, 8866, 26411, 23274, 115, 40993]
    assert tokenizer(text).input_ids == tokens
    assert tokenizer.decode(tokens) == text


def test_the_chat_template_is_the_files_own(tokenizer):
    rendered = tokenizer.decode(chat(tokenizer, "Hi")["input_ids"][0])
    assert rendered == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_output_head_is_the_embedding(smollm2, model):
    from safetensors import safe_open

    with safe_open(smollm2 / "model.safetensors", framework="numpy") as weights:
        assert "lm_head.weight" not in set(weights.keys())
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_the_weights_are_the_files_blocks_times_scale_plus_minimum(smollm2):
    from gguf import GGUFReader
    from safetensors import safe_open

    tensors = {tensor.name: tensor for tensor in GGUFReader(embedded.source_file()).tensors}
    # Q4_1: of 32 weights each two float16, scale and minimum, then the low and the high nibbles
    blocks = tensors["blk.7.ffn_up.weight"].data.reshape(-1, 20)
    scale, minimum = blocks[:, :4].copy().view(np.float16).astype(np.float32).T
    integers = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    expected = integers * scale[:, None] + minimum[:, None]
    with safe_open(smollm2 / "model.safetensors", framework="numpy") as weights:
        found = weights.get_tensor("model.layers.7.mlp.up_proj.weight")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.reshape(1536, 576))


@pytest.mark.parametrize("fixture", ["smollm2", "tiny_llama", "tiny_granite"])
def test_fms_and_hugging_face_read_the_same_model(fixture, request):
    import torch
    from fms.models import get_model
    from transformers import AutoModelForCausalLM

    directory = request.getfixturevalue(fixture)
    ours = get_model("hf_pretrained", model_path=str(directory)).eval()
    theirs = AutoModelForCausalLM.from_pretrained(directory)
    tokens = torch.arange(1, 41).reshape(2, 20)  # the eos and pad tokens among them
    with torch.no_grad():
        # rounding depends on the machine: up to 2e-3 was seen; a wrong weight is off by 1
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-3, atol=1e-3)
