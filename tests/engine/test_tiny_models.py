"""The tiny models other tests stand on: readable everywhere, and worth comparing tokens of."""

import pytest

from tests.tiny_models import HEAD_DIM, tiny_model

pytestmark = pytest.mark.engine

BOTH = pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_granite"])


@BOTH
def test_heads_divide_by_two_three_and_four(fixture, request):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(request.getfixturevalue(fixture))
    for tensor_parallel in 2, 3, 4:
        assert config.num_attention_heads % tensor_parallel == 0
        assert config.num_key_value_heads % tensor_parallel == 0


@BOTH
def test_greedy_tokens_vary_and_do_not_hang_on_the_last_digits(fixture, request):
    tokens, margins = greedy(request.getfixturevalue(fixture), "Some prompt", 40)
    assert len(set(tokens)) > 20
    assert (margins > 1e-3).float().mean() > 0.9


@BOTH
def test_another_prompt_gives_other_tokens(fixture, request):
    directory = request.getfixturevalue(fixture)
    one, _ = greedy(directory, "Some prompt", 10)
    other, _ = greedy(directory, "Same prompt", 10)
    assert one != other


def greedy(directory, text: str, count: int):
    """The greedy tokens after `text`, and each one's lead over the runner-up: `[count]`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory)
    prompt = AutoTokenizer.from_pretrained(directory)(text, return_tensors="pt")
    out = model.generate(
        **prompt,
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best, second = torch.cat(out.logits).topk(2).values.unbind(-1)
    return out.sequences[0, -count:].tolist(), best - second


def test_granite_uses_every_multiplier(tiny_granite):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tiny_granite)
    neutral = {
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "attention_multiplier": HEAD_DIM**-0.5,
    }
    for name, value in neutral.items():
        assert getattr(config, name) != pytest.approx(value, rel=0.1), name


@BOTH
def test_every_token_is_a_byte_or_a_special_and_text_survives(fixture, request):
    from transformers import AutoConfig, AutoTokenizer

    directory = request.getfixturevalue(fixture)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert len(tokenizer) == AutoConfig.from_pretrained(directory).vocab_size == 256 + 8
    text = "Grüße, 日本!\n"
    tokens = tokenizer(text).input_ids
    assert len(tokens) == len(text.encode())
    assert tokenizer.decode(tokens) == text
    chat = [{"role": "user", "content": "Hi"}]
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert rendered == "<user>Hi<end><assistant>"


def test_the_seed_alone_decides_the_weights(tmp_path):
    def weights(name: str, seed: int) -> bytes:
        return (tiny_model(tmp_path / name, "llama", seed=seed) / "model.safetensors").read_bytes()

    assert weights("first", 1) == weights("again", 1)
    assert weights("other", 2) != weights("again", 1)


def test_an_unknown_architecture_is_named(tmp_path):
    with pytest.raises(ValueError, match="not 'gpt'"):
        tiny_model(tmp_path, "gpt")
