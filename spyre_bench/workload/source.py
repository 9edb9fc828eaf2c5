"""A workload by its name or from a file, as people say which one they mean."""

from __future__ import annotations

import difflib
import math
import os
from pathlib import Path

import numpy as np

from spyre_bench.workload.arrivals import AllAtOnce, Poisson, Process, parse_arrivals
from spyre_bench.workload.length_table import (
    WORKLOADS,
    LengthTable,
    is_length_table,
    shipped_table,
)
from spyre_bench.workload.max_tokens import MaxTokens
from spyre_bench.workload.trace_formats import Reading
from spyre_bench.workload.workload import Workload, trace_name

NAMED_REQUESTS = 10_000


def is_drawn(name_or_file: str | Path) -> bool:
    """Whether it is known to be a table of lengths that requests are drawn from, and no trace."""
    path = Path(name_or_file)
    return str(name_or_file) in WORKLOADS or (path.is_file() and is_length_table(path))


def named_workload(
    name: str,
    requests: int,
    rng: np.random.Generator | None,
    arrivals: Process | str | None = None,
) -> Workload:
    """New requests after a shipped table of lengths, one of `WORKLOADS`.

    They arrive as a Poisson process at the mean rate of the trace, or all at once where the trace
    has no times, unless told otherwise. The same seed gives the same lengths at any arrivals.
    """
    if name not in WORKLOADS:
        if os.path.exists(name):
            raise ValueError(
                f"workload {name} is a folder or a pipe (as a process substitution is), and not a "
                f"file: write it to one first"
            )
        near = difflib.get_close_matches(name, WORKLOADS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"workload {name!r} is unknown, and there is no such file: {hint}The named ones are "
            f"{', '.join(WORKLOADS)}"
        )
    return _sampled(name, shipped_table(name), requests, rng, arrivals)


def _sampled(
    name: str,
    table: LengthTable,
    requests: int,
    rng: np.random.Generator | None,
    arrivals: Process | str | None,
) -> Workload:
    if requests < 1:
        raise ValueError(f"workload {name}: {requests} requests are too few: ask for 1 or more")
    if rng is None:
        raise ValueError(
            f"workload {name} is drawn at random: pass rng=numpy.random.default_rng(seed)"
        )
    if arrivals is None:
        arrivals = AllAtOnce() if table.requests_per_s is None else Poisson(table.requests_per_s)
    prompt_tokens, output_tokens = table.sample(requests, rng)
    process = parse_arrivals(arrivals)
    arrival_s = process.times(requests, rng)
    return Workload(
        name,
        arrival_s,
        prompt_tokens,
        output_tokens,
        output_tokens,
        lead_in_s=float(arrival_s[0]),
    )


def part_of(
    workload: Workload,
    requests: int | None,
    rng: np.random.Generator | None,
    arrivals: Process | str | None,
    max_tokens: MaxTokens | str | None,
    from_s: float = 0.0,
    to_s: float = math.inf,
) -> Workload:
    """Of what was read from a file: those within the window, of these the first `requests`, with
    other arrivals and max_tokens where these are told."""
    if (from_s, to_s) != (0.0, math.inf):
        workload = workload.window(from_s, to_s)
    workload = workload if requests is None else workload.head(requests)
    workload = workload if arrivals is None else workload.with_arrivals(arrivals, rng)
    return workload if max_tokens is None else workload.with_max_tokens(max_tokens)


def load_workload(
    name_or_file: str | Path,
    *,
    requests: int | None = None,
    rng: np.random.Generator | None = None,
    arrivals: Process | str | None = None,
    max_tokens: MaxTokens | str | None = None,
    reading: Reading | None = None,
    from_s: float = 0.0,
    to_s: float = math.inf,
) -> Workload:
    """A workload by name or from a file, as the command line takes it.

    A name means `requests` new draws (10,000 unless told) from a shipped table, and a table file
    of your own likewise. A trace file means its first `requests` (all unless told), at their own
    times and with their own max_tokens unless told otherwise. A known name goes before a file of
    that name: write `./azure_conv` for the file. `reading` says what a file's column names leave
    open; `from_s` and `to_s` are a window of its times, before the first `requests` are taken.
    """
    whole = (from_s, to_s) == (0.0, math.inf)
    path = Path(name_or_file)
    drawn = requests if requests is not None else NAMED_REQUESTS
    if str(name_or_file) in WORKLOADS or not path.is_file():
        workload = named_workload(str(name_or_file), drawn, rng, arrivals)
    elif is_length_table(path):
        workload = _sampled(trace_name(path), LengthTable.read(path), drawn, rng, arrivals)
    else:
        read = Workload.read(path, reading)
        return part_of(read, requests, rng, arrivals, max_tokens, from_s, to_s)
    workload = workload if whole else workload.window(from_s, to_s)
    return workload if max_tokens is None else workload.with_max_tokens(max_tokens)
