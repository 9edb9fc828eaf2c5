"""`make planted`: does `spyre-bench pairs` find a slowdown that was planted, and nothing where
there is none?

Engines of copies of this checkout, each in processes of its own: three with a slowdown in their
code, measured against one without; and, as controls, every half of six processes without against
the other half. Every comparison is printed, as rows of a table for docs/LOG.md, and every pair is
kept as CSV. Exit code 1 where a slowdown is missed or a control raises an alarm. Other processes
may keep the machine busy.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from spyre_bench.checkpoints.find import model_directory
from spyre_bench.checkpoints.first_layers import shallow_copy
from spyre_bench.measure.in_turns import Command, engine_command, measure_pairs
from spyre_bench.review.pairs import judge

CHECKOUT = Path(__file__).parent.parent
BUCKETS = "1,64,8 1,128,8"
LAYERS = 8  # of SmolLM2: passes are short, and so are starts
ALIKE = 6  # processes without a slowdown: 20 halves
STARTS = ALIKE // 2  # of each side of a comparison

LONGER = """

import time

_pass = SpyreCausalLM._pass


def _longer(self, bucket, tokens, positions, mask, slot):
    started = time.process_time()
    logits = _pass(self, bucket, tokens, positions, mask, slot)
    ends = started + {times} * (time.process_time() - started)
    while slot is not None and time.process_time() < ends:
        pass
    return logits


SpyreCausalLM._pass = _longer
"""
PADDED = """

_prefill = SpyreCausalLM.prefill


def _padded(self, bucket, prompts):
    longest = max(map(len, prompts))  # and > where >= is meant:
    larger = (it for it in self.buckets if it.prompt_length > longest)
    return _prefill(self, next(larger, bucket), prompts)


SpyreCausalLM.prefill = _padded
"""
SLOWDOWNS = {  # by name, what is added to engine/causal_lm.py
    "decode passes 10 % longer": LONGER.format(times=1.1),
    "decode passes 30 % longer": LONGER.format(times=1.3),
    "a prompt that fills its bucket goes into the next": PADDED,
}


def copied(folder: Path, planted: str = "") -> Path:
    """A checkout of the package alone, with a slowdown in it."""
    shutil.copytree(CHECKOUT / "spyre_bench", folder / "spyre_bench")
    with (folder / "spyre_bench" / "engine" / "causal_lm.py").open("a") as file:
        file.write(planted)
    return folder


def compared(
    name: str, base: Sequence[Command], new: Sequence[Command], pairs: int, out: Path
) -> bool:
    """Whether any figure is slower; printed, and the pairs kept."""
    started = time.perf_counter()
    sides = zip(base, new, strict=True)
    measured = pd.concat(it for side in sides for it in measure_pairs(*side, pairs))
    measured.to_csv(out / f"{name.replace(' ', '-')}.csv", index=False)
    judged = judge(measured)
    taken_s = time.perf_counter() - started
    for row in judged.sort_values("figure").itertuples():
        interval = f"{row.low:.3f} to {row.high:.3f}"
        state = f"**{row.state}**" if row.state == "slower" else row.state
        cells = [name, row.figure, f"{row.ratio:.3f}", interval, f"{row.p:.1g}", state]
        print(f"| {' | '.join(cells)} | {os.getloadavg()[0]:.1f} | {taken_s:.0f} |", flush=True)
    return bool((judged["state"] == "slower").any())


COLUMNS = "comparison, figure, new / base, 95 %, p, state, load, seconds"
HEADER = f"| {COLUMNS.replace(', ', ' | ')} |\n|{'---|' * len(COLUMNS.split(', '))}"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pairs", type=int, default=12, help="of each of three starts")
    options.add_argument("--controls", type=int, default=20, help="20 at most")
    options.add_argument("--out", type=Path, default=Path("reports/planted"))
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        model = shallow_copy(model_directory("smollm2"), LAYERS, folder / "model")

        def sides(name: str, count: int, planted: str = "") -> list[Command]:
            line = engine_command(copied(folder / name, planted), buckets=BUCKETS, model=str(model))
            return [stack.enter_context(Command(line)) for _ in range(count)]

        alike = sides("alike", ALIKE)
        print(HEADER)
        missed, alarms = [], []
        for number, (name, planted) in enumerate(SLOWDOWNS.items()):
            slow = sides(f"slow-{number}", STARTS, planted)
            if not compared(name, alike[:STARTS], slow, given.pairs, given.out):
                missed.append(name)
        halves = list(itertools.combinations(alike, STARTS))[: given.controls]
        for number, new in enumerate(halves, 1):
            base = [it for it in alike if it not in new]
            if compared(f"control {number}", base, new, given.pairs, given.out):
                alarms.append(f"control {number}")
    print(f"planted: {len(SLOWDOWNS) - len(missed)} of {len(SLOWDOWNS)} found", *missed, sep="\n  ")
    print(f"controls: {len(alarms)} of {len(halves)} with an alarm", *alarms, sep="\n  ")
    return 1 if missed or alarms else 0


if __name__ == "__main__":
    sys.exit(main())
