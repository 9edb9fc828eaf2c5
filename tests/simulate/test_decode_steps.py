"""Derived decode steps against a server that takes every step one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyre_bench.simulate.decode_steps import decode_steps
from spyre_bench.workload.workload import Workload

REQUEST = st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 7))


def workload(*requests):
    arrival, prompt, output = np.array(sorted(requests), dtype=np.int32).T
    return Workload("w", arrival.astype(float), prompt, output, output)


def one_by_one(load, rows, step_s, row_s, prompt_token_s):
    """(running, longest) of every step."""
    waiting = list(
        zip(load.arrival_s, load.prompt_tokens.tolist(), load.output_tokens.tolist(), strict=True)
    )
    now, running, steps = 0.0, [], []
    while waiting or running:
        if not running:
            now = max(now, waiting[0][0])
        while waiting and len(running) < rows and waiting[0][0] <= now:
            _, prompt, output = waiting.pop(0)
            now += prompt * prompt_token_s
            if output > 1:
                running.append([prompt + 1, output - 1])
        if running:
            steps.append((len(running), max(context for context, _ in running)))
            now += step_s + row_s * len(running)
            running = [[context + 1, left - 1] for context, left in running if left > 1]
    return steps


@given(
    st.lists(REQUEST, min_size=1, max_size=12).filter(
        lambda requests: any(o > 1 for *_, o in requests)
    ),
    st.integers(1, 4),
    st.tuples(
        st.sampled_from([0.25, 1.0]), st.sampled_from([0.0, 0.5]), st.sampled_from([0.0, 0.25])
    ),
)
def test_stretches_are_the_steps_of_a_server_taken_one_by_one(requests, rows, seconds):
    load = workload(*requests)
    steps = decode_steps(load, rows, *seconds)
    running, context = steps.each()
    assert list(zip(running, context, strict=True)) == one_by_one(load, rows, *seconds)
    assert running.sum() == (load.output_tokens - 1).sum()  # every token but the prefill's


def test_a_stretch_ends_where_somebody_leaves_or_joins():
    steps = decode_steps(workload((0, 10, 5), (2, 3, 3)), rows=2, step_s=1.0)
    assert steps.running.tolist() == [1, 2]
    assert steps.context.tolist() == [11, 13]
    assert steps.steps.tolist() == [2, 2]


def test_what_makes_no_server_or_no_step_is_refused():
    load = workload((0, 1, 2))
    with pytest.raises(ValueError, match="rows 0"):
        decode_steps(load, 0, 1.0)
    for seconds in ((0.0,), (1.0, -1.0), (float("nan"),), (1.0, 0.0, -1.0)):
        with pytest.raises(ValueError, match="give the first above 0"):
            decode_steps(load, 1, *seconds)
    with pytest.raises(ValueError, match="no request has a second token"):
        decode_steps(workload((0, 1, 1)), 1, 1.0)
