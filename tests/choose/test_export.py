"""Every stack's export holds every rule of the stack; every rule can be broken; and fewer graphs
chosen pad less than more of the usual ones."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyre_bench.choose.export import Needs, export, held_out, judge, within_context
from spyre_bench.choose.one_dimension import Budget, Demand, optimal_grid
from spyre_bench.choose.stack import CHUNKS, CONTEXTS, PROMPTS, WIDTHS, Deployment
from spyre_bench.choose.stacks import STACKS, named
from spyre_bench.simulate.decode_steps import decode_steps
from spyre_bench.workload.source import load_workload
from spyre_bench.workload.workload import Workload

PAGE = (Path(__file__).parents[2] / "docs" / "STACKS.md").read_text(encoding="utf-8")


def needs_of(load, rows, step_s=0.02, row_s=1e-4):
    return Needs.of(load, decode_steps(load, rows, step_s, row_s))


@pytest.fixture(scope="module")
def conversation():
    """Azure's conversation trace as it ships: 26 requests at once in the mean."""
    return load_workload("azure_conv", requests=4000, rng=np.random.default_rng(0))


# --- a public trace -------------------------------------------------------------------------------


def test_25_graphs_of_a_list_pad_no_more_than_49_of_the_usual_ladder(conversation):
    """1, 2, 4, eights and sixteens up to 480: what vLLM captures by itself for 480 requests."""
    steps = decode_steps(conversation.scaled(rate=2), 480, 0.02, 1e-4)
    needs = Needs.of(conversation, steps)
    usual = [1, 2, 4, *range(8, 256, 8), *range(256, 481, 16)]
    assert len(usual) == 49
    ours = export(STACKS["vllm"], needs, Deployment(rows=480), {WIDTHS: 25}).lists[0]
    assert len(ours.sizes) == 25
    assert ours.padding < Demand.of(steps.running, steps.steps).padding_share(usual)


@pytest.mark.parametrize("rate", [1, 2])
def test_25_graphs_of_a_grid_pad_no_more_than_49_of_powers_of_two(conversation, rate):
    """Five widths times five contexts, against seven times seven doublings."""
    running, context = decode_steps(conversation.scaled(rate=rate), 64, 0.02, 1e-4).each()
    largest = 64, 16_384

    def padding(widths, contexts):
        columns = (
            np.array(sizes)[np.searchsorted(sizes, needed)]
            for sizes, needed in ((widths, running), (contexts, context))
        )
        return 1 - (running @ context) / np.prod(list(columns), axis=0).sum()

    doublings = [[most // 2**i for i in range(6, -1, -1)] for most in largest]
    ours = optimal_grid(running, context, (5, 5), steps=(1, 64), largest=largest)
    assert padding(*ours) < padding(*doublings)


# --- every stack ----------------------------------------------------------------------------------

REQUESTS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 900), st.integers(2, 60)), min_size=1, max_size=25
)


@settings(max_examples=25)
@given(
    REQUESTS,
    st.integers(1, 40),
    st.sampled_from([1024, 1500, 4096]),
    st.sampled_from([512, 1000, 4096]),
    st.integers(1, 12),
)
@pytest.mark.parametrize("name", STACKS)
def test_an_export_holds_every_rule_and_covers_every_need(
    name, requests, rows, context_tokens, step_tokens, sizes
):
    arrival, prompt, output = np.array(sorted(requests), dtype=np.int32).T
    load = Workload("w", arrival.astype(float), prompt, output, output)
    deployment = Deployment(rows, context_tokens, max(step_tokens, rows))
    stack = STACKS[name]
    given_sizes = max((len(set(it.always(deployment))) for it in stack.lists), default=0)
    allowed = {it.name: sizes + given_sizes + 1 for it in stack.lists}
    chosen = export(stack, needs_of(load, rows), deployment, allowed)
    assert chosen.findings == ()
    for it in chosen.lists:
        assert it.beyond == 0
        assert 0 <= it.padding < 1
        assert len(it.sizes) <= allowed[it.of.name]


ROWS, CONTEXT, STEP = 8, 4096, 2048
SOUND = {WIDTHS: [1, 4, 8], PROMPTS: [512, 2048], CONTEXTS: [1024, 4096], CHUNKS: [1056, 4095]}
# list -> sizes that break a rule of it
BROKEN = {
    WIDTHS: [[1, 4], [4, 4, 8], [1, 8, 9], [1, 8, 4096], [8, 4, 1], [3, 8]],
    PROMPTS: [[512, 1024], [512, 512, 2048], [512, 2048, 8192], [2048, 512], [1, 2048]],
    CONTEXTS: [[1024], [1024, 1024, 4096], [1024, 8192], [64, 4096]],
    CHUNKS: [[1056], [1056, 1056, 4095], [1056, 8192], [1024, 4095], [64, 4095]],
}


@pytest.mark.parametrize("name", STACKS)
def test_every_rule_holds_for_sound_sizes_and_is_broken_by_some(name):
    stack = STACKS[name]
    aligned = Deployment(ROWS, CONTEXT, STEP, width_step=4)
    sound = {it.name: SOUND[it.name] for it in stack.lists}
    if name == "neuron":
        sound[PROMPTS] = [512, 4096]
    plain = dataclasses.replace(aligned, width_step=1)
    assert stack.lint(sound, plain) == []
    broken = set()
    for of, bad in ((name, bad) for name in sound for bad in BROKEN[name]):
        for deployment in (plain, aligned):
            said = {
                rule for rule in stack.rules if list(rule.broken(sound | {of: bad}, deployment))
            }
            broken |= {id(rule) for rule in said}
    never = [rule.says for rule in stack.rules if id(rule) not in broken]
    assert never == []


@pytest.mark.parametrize("name", STACKS)
def test_every_rule_says_where_it_was_read_and_stands_on_the_page(name):
    section = PAGE.split(f"## {STACKS[name].title}\n")[1].split("\n## ")[0]
    assert f"`{name}`" in section
    for rule in STACKS[name].rules:
        assert rule.source in section, f"{name}: {rule.source} is missing in docs/STACKS.md"
        assert re.search(r"PyPI|@|github|aws-neuron|vllm-gaudi|readthedocs", rule.source)


def test_a_list_that_is_none_of_the_stack_or_no_list_is_refused():
    with pytest.raises(ValueError, match="vLLM takes widths, not prompts"):
        STACKS["vllm"].lint({PROMPTS: [1]}, Deployment(rows=8))
    for sizes in ([], [0], [1.5], [True]):
        with pytest.raises(ValueError, match="give whole numbers of 1 or more"):
            STACKS["vllm"].lint({WIDTHS: sizes}, Deployment(rows=8))
    with pytest.raises(ValueError, match="Did you mean vllm-gaudi"):
        named("vllm-gaudy")
    with pytest.raises(ValueError, match="width_step 4"):
        Deployment(rows=2, width_step=4)


# --- what one stack asks for ----------------------------------------------------------------------

STEPS = Needs(None, np.array([3, 3, 7, 12]), None, np.array([5.0, 5.0, 2.0, 1.0]))


def test_a_series_of_running_requests_is_enough_for_widths_alone():
    chosen = export(STACKS["vllm-rbln"], STEPS, Deployment(rows=16), {WIDTHS: 3})
    assert chosen.sizes == {WIDTHS: (3, 7, 16)}
    assert chosen.lists[0].padding == pytest.approx(1 - 56 / 60)
    assert chosen.lists[0].default_padding == pytest.approx(1 - 56 / 208)
    assert chosen.lists[0].idle == ()
    with pytest.raises(ValueError, match="num_batched_tokens_buckets needs prompts"):
        export(STACKS["vllm-neuron"], STEPS, Deployment(rows=16))


def test_sizes_that_nothing_runs_on_and_needs_above_them_are_told():
    chosen = judge(STACKS["vllm"], STEPS, Deployment(rows=16), {WIDTHS: [2, 7]})
    assert chosen.lists[0].idle == (2,)
    assert chosen.lists[0].beyond == pytest.approx(1 / 13)
    assert chosen.lists[0].padding == pytest.approx(1 - 44 / 84)
    assert [str(it) for it in chosen.findings] == [
        "the largest of widths is 7, below max_num_seqs 16: wider steps run without a graph; add "
        "16 (PyPI vllm 0.32.0: vllm/config/vllm.py:2337)"
    ]


def test_powers_of_two_are_there_in_any_case_on_a_tpu_and_are_not_written():
    deployment = Deployment(rows=16, step_tokens=64)
    chosen = export(STACKS["tpu-inference"], STEPS, deployment, {WIDTHS: 5})
    assert chosen.sizes == {WIDTHS: (3, 7, 16, 32, 64)}
    assert '"compilation_sizes": [3, 7]}' in chosen.text
    with pytest.raises(ValueError, match="3 sizes are compiled in any case, and 2 are allowed"):
        export(STACKS["tpu-inference"], STEPS, deployment, {WIDTHS: 2})


def test_an_input_as_long_as_a_neuron_bucket_needs_the_next():
    """A prompt of 128 tokens, and one of 126 that decodes at 127 and 128."""
    load = Workload("w", np.zeros(2), *np.array([[128, 126], [1, 3], [1, 3]], dtype=np.int32))
    deployment = Deployment(rows=2, context_tokens=1024)
    chosen = export(STACKS["neuron"], needs_of(load, 2), deployment)
    assert chosen.sizes == {PROMPTS: (128, 256, 1024), CONTEXTS: (128, 256, 1024)}


def test_a_gaudi_file_has_the_blocks_of_as_many_requests_as_the_width():
    load = Workload("w", np.zeros(4), *np.array([[100] * 4, [20] * 4, [20] * 4], dtype=np.int32))
    deployment = Deployment(rows=4, context_tokens=1024, step_tokens=512)
    chosen = export(STACKS["vllm-gaudi"], needs_of(load, 4), deployment, {WIDTHS: 1, CONTEXTS: 2})
    assert chosen.text.splitlines()[1:] == ["(1, [128, 512], 0)", "(4, 1, [4, 32])"]
    assert chosen.graphs == 2 + 1 * 2


def test_lengths_of_prefill_and_decode_differ_in_qefficient():
    load = Workload(
        "w", np.zeros(3), *np.array([[900, 1900, 3000], [9, 9, 900], [9, 9, 900]], dtype=np.int32)
    )
    deployment = Deployment(rows=1, context_tokens=4096)
    chosen = export(STACKS["qefficient"], needs_of(load, 1), deployment)
    assert chosen.sizes[CONTEXTS] == (1024, 2048, 3072, 4096)
    assert chosen.sizes[CHUNKS] == (1056, 2080, 3104, 4095)
    assert json.loads(chosen.text)["ctx_len"] == 4096


def test_widths_are_multiples_where_ranks_share_them_and_nowhere_else():
    chosen = export(STACKS["sglang"], STEPS, Deployment(rows=16, width_step=4), {WIDTHS: 3})
    assert chosen.sizes == {WIDTHS: (4, 8, 16)}
    with pytest.raises(ValueError, match="vLLM has no rule of multiples"):
        export(STACKS["vllm"], STEPS, Deployment(rows=16, width_step=4))


# --- budgets and the second half ------------------------------------------------------------------


def test_a_budget_of_seconds_or_bytes_cuts_all_lists_together(conversation):
    needs = needs_of(within_context(conversation.head(500), 8192), 16)
    deployment = Deployment(rows=16)
    stack = STACKS["vllm-neuron"]
    free = export(stack, needs, deployment, {PROMPTS: 8, WIDTHS: 6})
    assert free.graphs == 14
    cut = export(
        stack, needs, deployment, {PROMPTS: 8, WIDTHS: 6}, Budget(warmup_s=100, graph_s=12.5)
    )
    assert cut.graphs == 8
    share = sum(it.padding for it in cut.lists)
    for prompts in range(2, 8):
        other = export(stack, needs, deployment, {PROMPTS: prompts, WIDTHS: 8 - prompts})
        assert share <= sum(it.padding for it in other.lists) + 1e-12
    small = export(stack, needs, deployment, budget=Budget(memory_bytes=3, graph_bytes=1))
    assert small.graphs == 3
    with pytest.raises(ValueError, match="pays for 1 graphs, and vLLM Neuron compiles 2"):
        export(stack, needs, deployment, budget=Budget(graphs=1))
    with pytest.raises(ValueError, match="has no list of contexts"):
        export(stack, needs, deployment, {CONTEXTS: 3})


def test_a_width_that_never_came_has_one_of_its_own_where_widths_and_contexts_multiply_too():
    running, context = np.repeat([1, 4, 12, 64], 50), np.tile([900, 3000], 100)
    needs, deployment = Needs(np.array([700]), running, context, np.ones(200)), Deployment(rows=64)

    def between(unseen: float) -> list[int]:
        found = export(STACKS["vllm-gaudi"], needs, deployment, unseen=unseen)
        return [width for width in found.sizes[WIDTHS] if 12 < width < 64]

    assert not between(0)
    assert between(0.1)


def test_the_second_half_is_padded_by_what_suited_the_first():
    needs = Needs(None, np.array([2, 2, 5, 5]), None, np.ones(4))
    later = held_out(STACKS["vllm-rbln"], needs, Deployment(rows=8), {WIDTHS: 2})[WIDTHS]
    assert later.padding == pytest.approx(1 - 5 / 8)  # (2, 8): 5 was not there to see
    assert later.default_padding == pytest.approx(1 - 5 / 8)
    aware = held_out(STACKS["vllm-rbln"], needs, Deployment(rows=8), {WIDTHS: 4}, unseen=0.1)
    assert aware[WIDTHS].padding < later.padding
    with pytest.raises(ValueError, match="no second half"):
        held_out(STACKS["vllm-rbln"], Needs(None, np.array([2]), None, np.ones(1)), Deployment(8))
