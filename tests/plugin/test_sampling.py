"""Each sampling parameter has its effect under either kind of batching: every test fails if a
runner drops that parameter."""

import pytest

from tests.plugin.conftest import requests_of

HOT = 2.0  # the highest that vLLM takes; the likeliest token has 4 % then


STATIC = pytest.mark.parametrize("engine", ["static"], indirect=True)


@pytest.fixture(scope="module", params=["static", "continuous"])
def engine(request):
    llm = request.getfixturevalue("llm" if request.param == "static" else "continuous_llm")
    with requests_of(llm):
        yield llm


@pytest.fixture(scope="module")
def generate(engine):
    """Outputs of one prompt, or of a list of (prompt, parameters) that share a batch."""
    from vllm import SamplingParams

    def run(prompt, **parameters):
        several = isinstance(prompt, list)
        pairs = prompt if several else [(prompt, parameters)]
        settings = [
            SamplingParams(**{"temperature": 0, "max_tokens": 8, "ignore_eos": True} | chosen)
            for _, chosen in pairs
        ]
        outputs = engine.generate([text for text, _ in pairs], settings, use_tqdm=False)
        return outputs if several else outputs[0].outputs[0]

    return run


def tokens(output) -> list[int]:
    return list(output.token_ids)


@pytest.fixture(scope="module")
def greedy(reference):
    return reference.greedy("a prompt", 8)


def test_temperature_zero_takes_the_likeliest_tokens(generate, greedy):
    assert tokens(generate("a prompt")) == greedy


def test_temperature_spreads_the_choice(generate, greedy):
    cold = tokens(generate("a prompt", temperature=0.01, seed=1))
    hot = tokens(generate("a prompt", temperature=HOT, seed=1))
    assert cold == greedy
    assert sum(a == b for a, b in zip(hot, greedy, strict=True)) <= 2


@pytest.mark.parametrize("filter", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_a_filter_that_leaves_one_token_beats_any_temperature(generate, greedy, filter):
    assert tokens(generate("a prompt", temperature=HOT, seed=1, **filter)) == greedy


def test_top_k_leaves_exactly_the_k_likeliest(generate, reference):
    prompt_ids = reference.tokenizer("a prompt")["input_ids"]
    likeliest = set(reference.logits(prompt_ids).topk(3).indices.tolist())
    (result,) = generate(
        [("a prompt", {"temperature": HOT, "seed": 1, "top_k": 3, "max_tokens": 1, "n": 24})]
    )
    assert {output.token_ids[0] for output in result.outputs} == likeliest


def presence(logits, output):
    for token in set(output):
        logits[token] -= 2.0
    return logits


def frequency(logits, output):
    for token in output:
        logits[token] -= 2.0
    return logits


@pytest.mark.parametrize(
    ("parameter", "change"), [("presence_penalty", presence), ("frequency_penalty", frequency)]
)
def test_penalties_for_what_was_said(generate, reference, parameter, change):
    # among a few tokens of equal chance the penalty decides
    few = dict.fromkeys(range(40, 44), 100.0)

    def biased(change):
        def apply(logits, output):
            for token, bias in few.items():
                logits[token] += bias
            return change(logits, output)

        return apply

    plain = biased(lambda logits, output: logits)
    prompt = reference.prompt_where(
        lambda p: reference.greedy(p, 12, biased(change)) != reference.greedy(p, 12, plain)
    )
    said = generate(prompt, logit_bias=few, max_tokens=12, **{parameter: 2.0})
    assert tokens(said) == reference.greedy(prompt, 12, biased(change))


def test_frequency_and_presence_penalties_are_not_the_same(generate, reference):
    few = {40: 100.0, 41: 100.0}
    once = tokens(generate("a prompt", logit_bias=few, max_tokens=16, presence_penalty=2.0))
    often = tokens(generate("a prompt", logit_bias=few, max_tokens=16, frequency_penalty=2.0))
    assert once != often


def test_repetition_penalty_counts_prompt_and_answer(generate, reference):
    prompt_ids = reference.tokenizer("a prompt")["input_ids"]
    said = tokens(generate("a prompt", repetition_penalty=1e6, max_tokens=16))
    assert len(set(said)) == 16
    assert not set(said) & set(prompt_ids)


def test_a_seed_fixes_the_tokens_and_another_seed_gives_others(generate):
    one, again, other = (
        tokens(generate("a prompt", temperature=HOT, seed=seed)) for seed in (1, 1, 2)
    )
    assert one == again != other


def test_a_seeded_request_says_the_same_whatever_shares_its_batch(generate):
    seeded = ("a prompt", {"temperature": 2.0, "seed": 7})
    company = [
        ("another prompt", {"temperature": 2.0, "seed": 8, "max_tokens": 3}),
        ("b", {"temperature": 2.0, "max_tokens": 5}),  # no seed: draws from the common stream
        ("c c c", {}),
    ]
    alone = generate([seeded])[0].outputs[0]
    for place in range(4):
        crowd = generate([*company[:place], seeded, *company[place:]])
        assert tokens(crowd[place].outputs[0]) == tokens(alone)


@STATIC
def test_such_a_crowd_shares_a_batch(generate, new_passes):
    for crowd in (["a prompt"], ["a prompt", "b", "c c c", "another prompt"]):
        generate([(prompt, {}) for prompt in crowd])
    prefills = [line for line in new_passes() if line["kind"] == "prefill"]
    assert [line["running"] for line in prefills] == [1, 4]


def test_n_gives_that_many_answers(generate):
    (result,) = generate([("a prompt", {"temperature": HOT, "seed": 1, "n": 3})])
    assert len({tuple(output.token_ids) for output in result.outputs}) == 3


def test_logprobs_are_those_of_the_reference(generate, reference):
    output = generate("a prompt", logprobs=3)
    said, prompt_ids = tokens(output), reference.tokenizer("a prompt")["input_ids"]
    for step, given in enumerate(output.logprobs):
        expected = reference.logits(prompt_ids + said[:step]).log_softmax(-1)
        assert {*expected.topk(3).indices.tolist()} == set(given)
        for token, entry in given.items():
            assert entry.logprob == pytest.approx(float(expected[token]), abs=1e-3)


def test_logprobs_in_a_batch_belong_to_their_own_request(generate, reference):
    wanted = [("a prompt", {"logprobs": 1}), ("b", {"max_tokens": 2}), ("c c", {"logprobs": 2})]
    first, silent, last = generate(wanted)
    assert silent.outputs[0].logprobs is None
    for result, prompt in ((first, "a prompt"), (last, "c c")):
        expected = reference.logits(reference.tokenizer(prompt)["input_ids"]).log_softmax(-1)
        token = result.outputs[0].token_ids[0]
        assert result.outputs[0].logprobs[0][token].logprob == pytest.approx(
            float(expected[token]), abs=1e-3
        )


def test_logprobs_of_chosen_tokens_are_those_of_the_reference(generate, reference):
    chosen, other = generate([("a prompt", {"logprob_token_ids": [40, 50]}), ("b", {})])
    assert other.outputs[0].logprobs is None
    assert len(chosen.outputs[0].logprobs) == 8
    said, prompt_ids = tokens(chosen.outputs[0]), reference.tokenizer("a prompt")["input_ids"]
    for step, given in enumerate(chosen.outputs[0].logprobs):
        expected = reference.logits(prompt_ids + said[:step]).log_softmax(-1)
        assert set(given) == {40, 50, said[step]}
        for token, entry in given.items():
            assert entry.logprob == pytest.approx(float(expected[token]), abs=1e-3)


def test_logit_bias_moves_the_choice(generate):
    assert tokens(generate("a prompt", logit_bias={77: 100.0})) == [77] * 8


def test_allowed_token_ids_leave_no_other(generate):
    said = tokens(generate("a prompt", temperature=HOT, seed=1, allowed_token_ids=[50, 60]))
    assert set(said) == {50, 60}


def test_bad_words_are_never_said(generate, reference):
    def first_is_ascii(prompt):
        return 33 <= ord(reference.tokenizer.decode(reference.greedy(prompt, 1))[0]) < 127

    prompt = reference.prompt_where(first_is_ascii)
    first = reference.greedy(prompt, 1)[0]
    said = tokens(generate(prompt, bad_words=[reference.tokenizer.decode([first])]))
    assert first not in said
    prompt_ids = reference.tokenizer(prompt)["input_ids"]
    assert said[0] == reference.logits(prompt_ids).topk(2).indices[1]


def test_a_stop_token_ends_the_answer(generate, greedy):
    stop = greedy[4]
    output = generate("a prompt", stop_token_ids=[stop])
    assert tokens(output) == greedy[: greedy.index(stop) + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)


def test_a_stop_string_ends_the_answer(generate, reference):
    word = dict.fromkeys(reference.tokenizer("x")["input_ids"], 100.0)
    output = generate("a prompt", logit_bias=word, stop="xxx")
    assert (output.text, output.finish_reason, output.stop_reason) == ("", "stop", "xxx")
    assert len(output.token_ids) == 3


def test_a_repeated_pattern_ends_the_answer(generate):
    from vllm.sampling_params import RepetitionDetectionParams

    repetition = RepetitionDetectionParams(max_pattern_size=1, min_count=3)
    output = generate("a prompt", logit_bias={77: 100.0}, repetition_detection=repetition)
    assert tokens(output) == [77] * 3
    assert (output.finish_reason, output.stop_reason) == ("repetition", "repetition_detected")


@pytest.mark.parametrize("budget", [1, 3])
def test_thinking_ends_with_its_budget(generate, reference, budget):
    (end,) = reference.tokenizer("]")["input_ids"]
    free = reference.greedy("a prompt [", 8)
    assert end not in free
    said = tokens(generate("a prompt [", thinking_token_budget=budget))
    assert said[: budget + 1] == [*free[:budget], end]


def test_min_tokens_holds_the_end_back(generate, greedy):
    output = generate("a prompt", stop_token_ids=[greedy[0]], min_tokens=4)
    assert len(output.token_ids) >= 4
    assert greedy[0] not in output.token_ids[:4]


@pytest.mark.parametrize(("ignore", "length"), [(True, 8), (False, 1)])
def test_the_end_of_sequence_ends_the_answer_unless_ignored(generate, reference, ignore, length):
    end = reference.tokenizer.eos_token_id
    output = generate("a prompt", logit_bias={end: 100.0}, ignore_eos=ignore)
    assert len(output.token_ids) == length


@pytest.mark.parametrize("length", [1, 2, 16])
def test_max_tokens_ends_the_answer(generate, length):
    output = generate("a prompt", max_tokens=length)
    assert (len(output.token_ids), output.finish_reason) == (length, "length")


@STATIC
@pytest.mark.parametrize(("prompt", "length"), [("a", 32), ("a" * 100, 32)])
def test_without_max_tokens_the_buckets_decide(generate, prompt, length):
    assert len(generate(prompt, max_tokens=None).token_ids) == length


def test_a_custom_logits_processor_is_used(generate, greedy):
    free, forced = generate([("a prompt", {}), ("a prompt", {"extra_args": {"force_token": 99}})])
    assert tokens(forced.outputs[0]) == [99] * 8
    assert tokens(free.outputs[0]) == greedy


@pytest.mark.parametrize(
    ("structure", "fits"),
    [
        ({"choice": ["yes", "no"]}, r"yes|no"),
        ({"regex": r"[0-9]{3}-[a-f]{2}"}, r"[0-9]{3}-[a-f]{2}"),
        (
            {
                "json": {
                    "type": "object",
                    "properties": {"a": {"enum": [1, 2]}},
                    "required": ["a"],
                    "additionalProperties": False,
                }
            },
            r'\{\s*"a"\s*:\s*[12]\s*\}',
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_structured_answer_has_its_structure(generate, reference, structure, fits):
    import re

    from vllm.sampling_params import StructuredOutputsParams

    structured = {
        "structured_outputs": StructuredOutputsParams(**structure),
        "ignore_eos": False,
        "max_tokens": 30,
        # JSON allows blanks without end
        "logit_bias": dict.fromkeys(reference.tokenizer(" \t\r\n")["input_ids"], -100.0),
    }
    free, answer = generate([("a prompt", {}), ("a prompt", structured)])
    assert re.fullmatch(fits, answer.outputs[0].text)
    assert not re.fullmatch(fits, free.outputs[0].text)


def test_rows_that_end_early_leave_the_others_unharmed(generate, reference):
    lengths = {"a prompt": 2, "b": 9, "c c c": 1, "another prompt": 16}
    results = generate([(prompt, {"max_tokens": n}) for prompt, n in lengths.items()])
    for result, (prompt, length) in zip(results, lengths.items(), strict=True):
        assert tokens(result.outputs[0]) == reference.greedy(prompt, length)
