"""Which decode steps a continuous batching server would run for a workload: how many requests each
of them holds, and how long the longest is. For stacks that are not simulated further."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np

from spyre_bench.workload.workload import Workload


@dataclass(frozen=True, eq=False)
class DecodeSteps:
    """Stretches of steps between which nobody joins or leaves, in order of time."""

    running: np.ndarray  # int64 [n], requests in each step
    context: np.ndarray  # int64 [n], tokens of the longest of them in the first step; one more each
    steps: np.ndarray  # int64 [n]

    def each(self) -> tuple[np.ndarray, np.ndarray]:
        """Running and context of every single step."""
        first = np.repeat(np.cumsum(self.steps) - self.steps, self.steps)
        within = np.arange(int(self.steps.sum())) - first
        return np.repeat(self.running, self.steps), np.repeat(self.context, self.steps) + within


def decode_steps(
    workload: Workload, rows: int, step_s: float, row_s: float = 0.0, prompt_token_s: float = 0.0
) -> DecodeSteps:
    """The steps of a server with `rows` places: first come, first served, whoever is done leaves.

    A step of w requests takes `step_s + w · row_s` seconds and gives each a token; a prompt takes
    `prompt_token_s` per token, in which nobody decodes, and gives the first one. A step's context
    is the longest prompt with its outputs so far. Raises ValueError for rows below 1, a step of no
    seconds and seconds below 0.
    """
    if rows < 1:
        raise ValueError(f"rows {rows} is below 1: give the server a place or more")
    if not (math.isfinite(step_s) and step_s > 0 and row_s >= 0 and prompt_token_s >= 0):
        raise ValueError(
            f"a step of {step_s} s, {row_s} s per row, {prompt_token_s} s per prompt token: give "
            f"the first above 0 and none below"
        )
    arrival_s, prompts, outputs = (
        column.tolist()
        for column in (workload.arrival_s, workload.prompt_tokens, workload.output_tokens)
    )
    ends: list[tuple[int, int]] = []  # the step that a request leaves after, its context at step 0
    longest: list[tuple[int, int]] = []  # minus that context, the step; those who left stay a while
    stretches: list[tuple[int, int, int]] = []
    now_s, done, following = 0.0, 0, 0
    while following < len(arrival_s) or ends:
        if not ends:
            now_s = max(now_s, arrival_s[following])
        while following < len(arrival_s) and len(ends) < rows and arrival_s[following] <= now_s:
            prompt, left = prompts[following], outputs[following] - 1
            now_s += prompt * prompt_token_s
            if left:
                heapq.heappush(ends, (done + left, prompt - done))
                heapq.heappush(longest, (done - prompt, done + left))
            following += 1
        if not ends:
            continue
        step = step_s + row_s * len(ends)
        count = ends[0][0] - done
        if following < len(arrival_s) and len(ends) < rows:
            count = min(count, max(1, math.ceil((arrival_s[following] - now_s) / step)))
        while longest[0][1] <= done:
            heapq.heappop(longest)
        stretches.append((len(ends), done - longest[0][0] + 1, count))
        done, now_s = done + count, now_s + count * step
        while ends and ends[0][0] <= done:
            heapq.heappop(ends)
    if not stretches:
        raise ValueError(
            f"workload {workload.name}: no request has a second token, so nothing is decoded"
        )
    running, context, steps = np.array(stretches, dtype=np.int64).T
    return DecodeSteps(running, context, steps)
