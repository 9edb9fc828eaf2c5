"""Length tables: the joint distribution of prompt and output lengths of a trace, in a few
kilobytes.

A table can be shared where a trace cannot. To make one of a trace of yours:
`python -m spyre_bench.workload.length_table TRACE OUT.csv`
"""

from __future__ import annotations

import csv
import gzip
import os
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from spyre_bench.frames import open_text
from spyre_bench.workload.trace_files import read_trace

WORKLOADS = (
    "azure_conv",
    "azure_code",
    "burstgpt",
    "mooncake_conversation",
    "fmperf_ibm",
    "sharegpt",
    "arxiv_summarization",
)
"""Names of the shipped tables."""

FOLDER = Path(__file__).parents[1] / "data" / "workloads"

GROUPS = 64
PROMPT_LEVELS = np.round(np.linspace(0, 1, 11), 6)
# The mean of the outputs hangs on their tail, so the levels are finer there.
OUTPUT_LEVELS = np.round(
    np.concatenate([np.linspace(0, 0.9, 37), np.linspace(0.91, 0.98, 8), [0.985, 0.99, 0.995, 1]]),
    6,
)

COUNT, RATE = "requests", "requests_per_s"


@dataclass(frozen=True, eq=False)
class LengthTable:
    """Requests in groups of similar prompt length: within a group, prompt and output are taken
    as independent, each by its quantiles.

    Between two quantiles the distribution is linear, and rounded to whole tokens; where neighbours
    are equal it is an atom, so that round lengths and caps of the service survive.
    """

    requests: np.ndarray  # [group] requests of the trace
    prompt_quantiles: np.ndarray  # [group, level] tokens
    output_quantiles: np.ndarray  # [group, level] tokens
    prompt_levels: np.ndarray  # [level] 0..1
    output_levels: np.ndarray  # [level] 0..1
    requests_per_s: float | None  # mean arrival rate of the trace; None if it has no times

    @classmethod
    def fit(
        cls,
        prompt_tokens: np.ndarray,
        output_tokens: np.ndarray,
        requests_per_s: float | None = None,
    ) -> LengthTable:
        """The table of a trace, from its lengths in tokens, one per request."""
        order = np.argsort(prompt_tokens, kind="stable")
        edges = _group_edges(np.asarray(prompt_tokens)[order])
        groups = np.split(order, edges[1:-1])
        return cls(
            np.diff(edges),
            _quantiles(prompt_tokens, groups, PROMPT_LEVELS),
            _quantiles(output_tokens, groups, OUTPUT_LEVELS),
            PROMPT_LEVELS,
            OUTPUT_LEVELS,
            requests_per_s,
        )

    def sample(self, requests: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Prompt and output lengths of new requests, int32[requests] each."""
        group = rng.choice(len(self.requests), requests, p=self.requests / self.requests.sum())
        return (
            _inverse(self.prompt_levels, self.prompt_quantiles, group, rng.random(requests)),
            _inverse(self.output_levels, self.output_quantiles, group, rng.random(requests)),
        )

    @classmethod
    def read(cls, path: str | Path) -> LengthTable:
        """Reads what `write` wrote; ValueError for anything else."""
        try:
            frame = pd.read_csv(path).astype(np.float64)
            prompt_levels, prompt_quantiles = _read_levels(frame, "prompt_q")
            output_levels, output_quantiles = _read_levels(frame, "output_q")
            requests, rates = frame[COUNT].to_numpy(), frame[RATE].dropna().unique()
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{path} is no length table ({error}): it needs the columns {COUNT}, {RATE}, "
                f"prompt_q0 … prompt_q1 and output_q0 … output_q1, all numbers"
            ) from error
        table = cls(
            requests,
            prompt_quantiles,
            output_quantiles,
            prompt_levels,
            output_levels,
            float(rates[0]) if len(rates) else None,
        )
        table._check(path)
        return table

    def _check(self, path: str | Path) -> None:
        good = self.requests >= 1
        for levels, quantiles in (
            (self.prompt_levels, self.prompt_quantiles),
            (self.output_levels, self.output_quantiles),
        ):
            if levels[0] != 0 or levels[-1] != 1 or (np.diff(levels) <= 0).any():
                raise ValueError(f"{path}: the quantile columns must ascend from q0 to q1")
            good = good & (quantiles[:, 0] >= 1) & (np.diff(quantiles) >= 0).all(axis=1)
        if not good.all():
            raise ValueError(
                f"{path} line {int(np.argmin(good)) + 2}: a group has 1 request or more, and "
                f"quantiles that ascend from 1 token or more"
            )

    def write(self, path: str | Path) -> None:
        prompt = [f"prompt_q{level:.6g}" for level in self.prompt_levels]
        output = [f"output_q{level:.6g}" for level in self.output_levels]
        tokens = np.column_stack([self.requests, self.prompt_quantiles, self.output_quantiles])
        frame = pd.DataFrame(tokens.astype(np.int64), columns=[COUNT, *prompt, *output])
        frame.insert(1, RATE, self.requests_per_s)
        frame.to_csv(path, index=False, lineterminator="\n")


def is_length_table(path: str | Path) -> bool:
    """Whether the file is a table and not a trace, by its columns."""
    path = Path(path)
    if not path.name.endswith((".csv", ".csv.gz")):
        return False
    try:
        with open_text(path) as file:
            names = next(csv.reader(file), [])
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error, csv.Error):
        return False
    return {COUNT, RATE, "prompt_q0", "output_q0"} <= set(names)


def _read_levels(frame: pd.DataFrame, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Levels and quantiles by the names of the columns."""
    names = [name for name in map(str, frame) if name.startswith(prefix)]
    if len(names) < 2 or frame.empty:
        raise ValueError(f"{len(frame)} lines of {len(names)} columns {prefix}…")
    levels = np.array([float(name.removeprefix(prefix)) for name in names])
    return levels, frame[names].to_numpy()


def _group_edges(prompts: np.ndarray) -> np.ndarray:
    """Ranks that part the ascending prompts into at most GROUPS groups of about equal size. Equal
    prompts stay together, so that a frequent length makes a group of its own."""
    ideal = np.linspace(0, len(prompts), GROUPS + 1).round().astype(int)[1:-1]
    at = prompts[np.minimum(ideal, len(prompts) - 1)]
    first = np.searchsorted(prompts, at, side="left")
    past = np.searchsorted(prompts, at, side="right")
    nearest = np.where(ideal - first <= past - ideal, first, past)
    return np.unique(np.concatenate([[0], nearest, [len(prompts)]]))


def _quantiles(tokens: np.ndarray, groups: list[np.ndarray], levels: np.ndarray) -> np.ndarray:
    """Whole tokens, int64[group, level]."""
    rows = [np.quantile(tokens[group], levels, method="hazen") for group in groups]
    return np.rint(rows).astype(np.int64)


def _inverse(
    levels: np.ndarray, quantiles: np.ndarray, group: np.ndarray, u: np.ndarray
) -> np.ndarray:
    """The quantile at `u` of each one's group, linear between levels, in whole tokens."""
    left = np.searchsorted(levels, u, side="right") - 1  # u < 1, so left + 1 exists
    share = (u - levels[left]) / (levels[left + 1] - levels[left])
    low, high = quantiles[group, left], quantiles[group, left + 1]
    return np.floor(low + share * (high - low) + 0.5).astype(np.int32)


# --- the tables that ship with the package --------------------------------------------------------


def shipped_table(name: str) -> LengthTable:
    return LengthTable.read(FOLDER / f"{name}.csv")


def attributions() -> dict[str, str]:
    """Where each shipped table comes from, and under which licence: a line to print beside it."""
    with open(FOLDER / "sources.csv", encoding="utf-8", newline="") as file:
        return {
            row["name"]: f"{row['what']}; {row['source']}, {row['licence']}"
            for row in csv.DictReader(file)
        }


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        sys.exit("usage: python -m spyre_bench.workload.length_table TRACE OUT.csv")
    trace, out = map(Path, arguments)
    try:
        read = read_trace(trace)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    LengthTable.fit(read.prompt_tokens, read.output_tokens, read.requests_per_s).write(out)
    print(read.read_as, file=sys.stderr)
    print(f"{out}: {len(read.prompt_tokens)} requests in {os.path.getsize(out)} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
