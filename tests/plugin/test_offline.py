"""vLLM's offline LLM on the backend: batches, refusals, beam search, aborts."""

import pytest

PROMPTS = ["a prompt", "b", "c c c", "another prompt", "e", "f f", "g", "h h h h"]


@pytest.fixture(scope="module")
def sampling(llm):
    from vllm import SamplingParams

    return lambda **chosen: SamplingParams(
        **{"temperature": 0, "max_tokens": 6, "ignore_eos": True} | chosen
    )


def prefills(lines: list[dict]) -> list[dict]:
    return [line for line in lines if line["kind"] == "prefill"]


def test_nothing_compiles_while_serving(llm, sampling):
    from vllm.sampling_params import StructuredOutputsParams

    from spyre_bench.engine.compile import unique_graphs

    before = unique_graphs()
    random = {"temperature": 1.0, "seed": 1, "top_k": 5, "top_p": 0.9, "min_p": 0.01}
    digits = StructuredOutputsParams(regex="[0-9]+")
    every = [
        {"logprobs": 2},
        random,
        {"structured_outputs": digits, "presence_penalty": 1.0},
        {"logit_bias": {5: 1.0}, "bad_words": ["x"], "min_tokens": 2},
    ]
    llm.generate(PROMPTS[:4], [sampling(**chosen) for chosen in every], use_tqdm=False)
    llm.generate(PROMPTS[0], sampling(logprobs=1), use_tqdm=False)
    assert before > 0
    assert unique_graphs() == before


def test_simultaneous_prompts_share_full_batches_in_order(llm, sampling, reference, new_passes):
    results = llm.generate(PROMPTS, sampling(), use_tqdm=False)
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.outputs[0].token_ids == reference.greedy(prompt, 6)
    asked = [result.request_id for result in results]
    served = [
        request.rsplit("-", 1)[0] for line in prefills(new_passes()) for request in line["requests"]
    ]
    assert served == asked
    assert [line["running"] for line in prefills(new_passes())] == [4, 4]


def test_a_batch_runs_until_its_longest_member_ends_and_no_longer(llm, sampling, new_passes):
    lengths = [2, 5, 3, 16, 4]
    llm.generate(PROMPTS[:5], [sampling(max_tokens=n) for n in lengths], use_tqdm=False)
    passes = [(line["kind"], line["step"], line["running"]) for line in new_passes()]
    first = [
        ("prefill", 0, 4),
        ("decode", 1, 4),
        ("decode", 2, 3),
        ("decode", 3, 2),
        ("decode", 4, 2),
        *(("decode", step, 1) for step in range(5, 16)),
    ]
    second = [("prefill", 0, 1), *(("decode", step, 1) for step in range(1, 4))]
    assert passes == first + second


def test_the_pass_log_says_what_ran_where_and_how_long(llm, sampling, new_passes):
    llm.generate(["c" * 100, "d"], sampling(max_tokens=2), use_tqdm=False)
    prefill, decode = new_passes()
    assert prefill["bucket"] == decode["bucket"] == [2, 192, 32]
    assert prefill["prompt_tokens"] == decode["prompt_tokens"] == [100, 1]
    assert prefill["batch"] == decode["batch"]
    assert 0 < prefill["seconds"] <= decode["start_s"] - prefill["start_s"] + 0.001


def test_the_pass_log_begins_with_one_line_for_each_warmed_bucket(llm, pass_log):
    import json

    warmed = [json.loads(line) for line in pass_log.read_text().splitlines()[:2]]
    assert {line["kind"] for line in warmed} == {"warmup"}
    assert sorted(line["bucket"] for line in warmed) == [[2, 192, 32], [4, 64, 16]]
    assert all(line["prefill_s"] >= 0 and "was_warm" in line for line in warmed)


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 191, 192])
def test_prompts_at_the_edges_of_the_buckets_say_what_the_reference_says(
    llm, sampling, reference, tokens
):
    text = ("lorem ipsum " * 16)[:tokens]
    (result,) = llm.generate(text, sampling(), use_tqdm=False)
    assert result.outputs[0].token_ids == reference.greedy(text, 6)


def test_chat_uses_the_models_template(llm, sampling, reference):
    (result,) = llm.chat([{"role": "user", "content": "hi"}], sampling(), use_tqdm=False)
    assert result.outputs[0].token_ids == reference.greedy("<user>hi<end><assistant>", 6)


@pytest.mark.parametrize(
    ("prompt", "chosen", "words"),
    [
        ("x" * 193, {}, "no bucket fits prompt_tokens=193 with max_tokens=6.*nearest buckets"),
        ("x", {"max_tokens": 33}, "no bucket fits prompt_tokens=1 with max_tokens=33"),
        ("x", {"prompt_logprobs": 1}, "does not support prompt_logprobs=1"),
    ],
)
def test_a_refused_request_is_an_error_and_the_next_one_is_served(
    llm, sampling, prompt, chosen, words
):
    with pytest.raises(ValueError, match=words):
        llm.generate(prompt, sampling(**chosen), use_tqdm=False)
    assert llm.generate("x", sampling(), use_tqdm=False)[0].finished


@pytest.mark.parametrize("chosen", [{}, {"temperature": 1.0, "seed": 11}], ids=["greedy", "seed"])
def test_in_another_bucket_only_near_ties_may_fall_otherwise(
    llm, sampling, reference, new_passes, chosen
):
    asked = sampling(max_tokens=16, **chosen)
    small = llm.generate(PROMPTS, asked, use_tqdm=False)
    near_ties = []
    for prompt, alone in zip(PROMPTS, small, strict=True):
        # the long prompt takes the short one with it into the larger bucket
        beside, _ = llm.generate([prompt, "l" * 100], asked, use_tqdm=False)
        one, other = (list(result.outputs[0].token_ids) for result in (alone, beside))
        if one != other:
            step = next(step for step in range(16) if one[step] != other[step])
            likeliest = reference.logits(alone.prompt_token_ids + one[:step]).topk(2).values
            near_ties.append((prompt, step, float(likeliest[0] - likeliest[1])))
    buckets = [line["bucket"] for line in prefills(new_passes())]
    assert buckets == [[4, 64, 16]] * 2 + [[2, 192, 32]] * 8
    assert all(margin < 1e-4 for *_, margin in near_ties), (
        f"tokens differ at (prompt, step, top-2 margin): {near_ties}"
    )


def test_running_requests_cannot_be_reset_and_go_on_unharmed(llm, sampling, reference, new_passes):
    engine, said = llm.llm_engine, []
    engine.add_request("reset", PROMPTS[0], sampling(max_tokens=8))
    while engine.has_unfinished_requests():
        said = [output.outputs[0].token_ids for output in engine.step()] or said
        if len(new_passes()) == 3:
            with pytest.raises(ValueError, match=r"cannot reset the 1 running.*abort them first"):
                llm.reset_prefix_cache(reset_running_requests=True)
    assert said == [reference.greedy(PROMPTS[0], 8)]
    assert llm.reset_prefix_cache(reset_running_requests=True)


def test_a_pause_as_called_by_default_ends_all_and_can_be_resumed(llm, sampling, reference):
    engine = llm.llm_engine.engine_core.engine_core
    engine.pause_scheduler()
    assert engine.is_scheduler_paused()
    engine.resume_scheduler()
    (result,) = llm.generate(PROMPTS[0], sampling(), use_tqdm=False)
    assert result.outputs[0].token_ids == reference.greedy(PROMPTS[0], 6)


def test_what_no_worker_does_is_refused_with_what_to_do_instead(llm, sampling):
    engine = llm.llm_engine.engine_core.engine_core
    for call in (llm.sleep, engine.list_loras, engine.compute_weight_checksums, llm.start_profile):
        with pytest.raises(ValueError, match=r"the spyre backend does not support .*: "):
            call()
    with pytest.raises(ValueError, match=r"does not support discard: .*wake_up ends the pause"):
        engine.model_executor.discard(("kv_cache",))
    assert llm.wake_up()
    assert llm.generate(PROMPTS[0], sampling(), use_tqdm=False)


def test_beam_search_works_within_the_buckets(llm, reference):
    from vllm.sampling_params import BeamSearchParams

    (result,) = llm.beam_search(
        [{"prompt": "a prompt"}], BeamSearchParams(beam_width=2, max_tokens=4, ignore_eos=True)
    )
    best, second = result.sequences
    prompt_ids = reference.tokenizer("a prompt")["input_ids"]
    assert best.tokens[: len(prompt_ids)] == prompt_ids
    assert len(best.tokens) == len(prompt_ids) + 4
    assert best.cum_logprob == pytest.approx(log_probability(reference, best.tokens, 4), abs=1e-2)
    assert best.cum_logprob >= second.cum_logprob


def log_probability(reference, tokens: list[int], new: int) -> float:
    start = len(tokens) - new
    return sum(
        float(reference.logits(tokens[:place]).log_softmax(-1)[tokens[place]])
        for place in range(start, len(tokens))
    )


def test_an_aborted_row_becomes_a_dummy_and_nobody_else_notices(
    llm, sampling, reference, new_passes
):
    engine = llm.llm_engine
    internal = [
        engine.add_request(f"abort-{row}", prompt, sampling(max_tokens=8))
        for row, prompt in enumerate(PROMPTS[:4])
    ]
    finished = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                finished[output.request_id] = output.outputs[0].token_ids
        if len(prefills(new_passes())) and "aborted" not in finished:
            engine.abort_request(["abort-1"])
            finished["aborted"] = None
    assert len(internal) == 4
    for row in (0, 2, 3):
        assert finished[f"abort-{row}"] == reference.greedy(PROMPTS[row], 8)
    assert new_passes()[-1]["running"] == 3
