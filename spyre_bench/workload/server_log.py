"""What a vLLM server says of its load without naming a request: the lines of its log, and
`/metrics`. Requests like its own are drawn from that; what is assumed is in `read_as`.

Lines and names as vLLM 0.32.0 writes them (`v1/metrics/loggers.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from spyre_bench.frames import open_text
from spyre_bench.workload.workload import Workload

MOST_REQUESTS = 10_000
LINE = re.compile(
    r"(?P<at>\d\d-\d\d \d\d:\d\d:\d\d)(?:.*Engine (?P<engine>\d+):)?"
    r".*Avg prompt throughput: (?P<prompt>[\d.]+) tokens/s, "
    r"Avg generation throughput: (?P<output>[\d.]+) tokens/s, Running: (?P<running>\d+) reqs, "
    r"(?:Swapped: \d+ reqs, )?(?:Waiting|Pending): (?P<waiting>\d+) reqs"
)
BIN = re.compile(
    r'vllm:request_(?P<of>prompt_tokens|generation_tokens|params_max_tokens)_bucket\{.*le="'
    r'(?P<le>[^"]+)".*\} (?P<count>\S+)'
)
STARTED = re.compile(r"^process_start_time_seconds (\S+)", re.MULTILINE)
LINES, METRICS = "lines of a log", "metrics"


def kind_of(path: Path) -> str | None:
    """`LINES`, `METRICS`, or None for any other file."""
    try:
        with open_text(path) as file:
            for line in file:
                if LINE.search(line):
                    return LINES
                if BIN.match(line):
                    return METRICS
    except (UnicodeDecodeError, OSError):
        pass
    return None


# --- lines of the log -----------------------------------------------------------------------------


def from_lines(path: Path, lengths: Workload, rng: np.random.Generator) -> Workload:
    """As many requests, when the log's tokens were processed, with lengths drawn from a workload
    like its own; prompts are stretched until the tokens of both kinds are the log's. Raises
    ValueError for a log without a line of tokens."""
    engine, at_s, prompt_tps, output_tps, running, waiting = _lines(path)
    since_s = np.concatenate([np.diff(at_s[engine == one]) for one in np.unique(engine)])
    if (since_s < 0).any():
        raise ValueError(f"{path}: its lines go back in time: cut out those of one run")
    interval_s = float(np.median(since_s)) if len(since_s) else 10.0
    prompt, output = prompt_tps * interval_s, output_tps * interval_s
    if not (prompt.sum() > 0 and output.sum() > 0):
        raise ValueError(f"{path} has no line with tokens of prompts and of outputs: was it idle?")
    requests = max(1, round(output.sum() / lengths.output_tokens.mean()))
    when = rng.choice(len(at_s), requests, p=prompt / prompt.sum())
    arrival_s = np.sort(at_s[when] - interval_s * rng.random(requests))
    drawn = rng.integers(0, len(lengths), requests)
    stretch = prompt.sum() / lengths.prompt_tokens[drawn].sum()
    prompts = np.maximum(1, np.rint(lengths.prompt_tokens[drawn] * stretch))
    return Workload(
        path.stem,
        arrival_s - arrival_s[0],
        prompts,
        lengths.output_tokens[drawn],
        lengths.max_tokens[drawn],
        read_as=(
            f"{path.name}: {len(at_s)} lines of a vLLM log, up to {running.max()} running and "
            f"{waiting.max()} waiting; requests made up for its tokens, with the lengths of "
            f"{lengths.name}, prompts x{stretch:.2f}"
        ),
    )


def _lines(path: Path) -> tuple[np.ndarray, ...]:
    """Whose it is, seconds from the first line, tokens/s of prompts and outputs, running and
    waiting. The year, which a line lacks, is taken for one that knows 29 February."""
    with open_text(path) as file:
        found = [match for line in file if (match := LINE.search(line))]
    times = [datetime.strptime(f"2024-{match['at']}", "%Y-%m-%d %H:%M:%S") for match in found]
    at_s = np.array([(time - times[0]).total_seconds() for time in times])
    engine = np.array([match["engine"] or "" for match in found])
    numbers = [
        np.array([float(match[name]) for match in found])
        for name in ("prompt", "output", "running", "waiting")
    ]
    return engine, at_s, numbers[0], numbers[1], numbers[2].astype(int), numbers[3].astype(int)


# --- /metrics -------------------------------------------------------------------------------------


def from_metrics(path: Path, rng: np.random.Generator) -> Workload:
    """Requests drawn from the histograms of a scrape (of several, the last): prompt and output
    independent of each other, even within a bin; max_tokens the longer, the longer the output. They
    come as a Poisson process over the time from the server's start to the file's. Raises ValueError
    for a scrape without a request."""
    with open_text(path) as file:
        text = file.read()
    bins = {of: dict(_bins(text, of)) for of in ("prompt_tokens", "generation_tokens")}
    asked = dict(_bins(text, "params_max_tokens"))
    served = round(min(max(counts.values(), default=0) for counts in bins.values()))
    if not served:
        raise ValueError(f"{path} counts no finished request: scrape /metrics after some")
    requests = min(served, MOST_REQUESTS)
    prompts, outputs = (_drawn(counts, requests, rng) for counts in bins.values())
    max_tokens = outputs
    if asked and max(asked.values()) > 0:
        longest = np.empty(requests, dtype=np.int64)
        longest[np.argsort(outputs, kind="stable")] = np.sort(_drawn(asked, requests, rng))
        max_tokens = np.maximum(outputs, longest)
    started = STARTED.findall(text)
    span_s = path.stat().st_mtime - float(started[-1]) if started else 0.0
    share = requests / served
    arrival_s = np.sort(rng.random(requests)) * max(0.0, span_s) * share
    when = (
        f"over {span_s:,.0f} s from the server's start to the file's own time"
        if span_s > 0
        else "all at once"
    )
    return replace(
        Workload(path.stem, arrival_s, prompts, outputs, max_tokens).from_zero(),
        read_as=(
            f"{path.name}: histograms of /metrics with {served:,} requests, {when}; requests drawn "
            f"from them, prompt and output independent of each other, even within a bin"
        ),
    )


def _bins(text: str, of: str) -> Iterator[tuple[float, float]]:
    """Upper ends and how many requests are below; engines are added up, and a later scrape takes
    the place of an earlier one."""
    sums: dict[tuple[str, float], float] = {}
    for line in text.splitlines():
        if (match := BIN.match(line)) and match["of"] == of:
            sums[line.rpartition(" ")[0], float(match["le"])] = float(match["count"])
    below: dict[float, float] = {}
    for (_, end), count in sums.items():
        below[end] = below.get(end, 0.0) + count
    yield from sorted(below.items())


def _drawn(below: dict[float, float], requests: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths, even within a bin; those beyond the last end have it."""
    ends = np.array([end for end in below if np.isfinite(end)])
    shares = np.array([below[end] for end in ends]) / max(below.values())
    at = (rng.permutation(requests) + 0.5) / requests
    return np.maximum(1, np.ceil(np.interp(at, np.append(0, shares), np.append(0, ends))))
