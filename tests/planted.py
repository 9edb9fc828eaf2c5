"""`make planted`: does `spyre-bench pairs` find a slowdown that was planted, and nothing where
there is none?

Three copies of this checkout have a slowdown in their engine, and each is measured against one that
has none; controls are measured against themselves. All as the command measures, with processes of
their own for every start. Every comparison is printed, as rows of a table for docs/LOG.md, and its
pairs are kept as CSV: one that is kept is not measured again, so that an interrupted run goes on.
Exit code 1 where a slowdown is missed or a control raises an alarm. Others may keep the machine
busy.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from spyre_bench.checkpoints.find import model_directory
from spyre_bench.checkpoints.first_layers import shallow_copy
from spyre_bench.files import replacing
from spyre_bench.measure.in_turns import engine_command, measure_starts_in_turns
from spyre_bench.review.pairs import judge

CHECKOUT = Path(__file__).parent.parent
BUCKETS = "1,64,8 1,128,8"
LAYERS = 8  # of SmolLM2: passes are short, and so are starts

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


def compared(name: str, base: str, new: str, starts: int, pairs: int, out: Path) -> bool:
    """Whether any figure is slower; printed, and the pairs kept."""
    started = time.perf_counter()
    path = out / f"{name.replace(' ', '-')}.csv"
    if not path.exists():
        measured = pd.concat(measure_starts_in_turns(base, new, starts, pairs))
        with replacing(path) as partial:
            measured.to_csv(partial, index=False)
    measured = pd.read_csv(path)
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
    options.add_argument("--starts", type=int, default=5, help="of both sides of a comparison")
    options.add_argument("--pairs", type=int, default=12, help="of each start")
    options.add_argument("--controls", type=int, default=20, help="how many")
    options.add_argument("--out", type=Path, default=Path("reports/planted"))
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    setting = (given.starts, given.pairs, given.out)
    missed, alarms = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = shallow_copy(model_directory("smollm2"), LAYERS, folder / "model")

        def engine(name: str, planted: str = "") -> str:
            checkout = copied(folder / name, planted)
            return engine_command(checkout, buckets=BUCKETS, model=str(model))

        plain = engine("plain")
        print(HEADER)
        for number, (name, planted) in enumerate(SLOWDOWNS.items()):
            if not compared(name, plain, engine(f"slow {number}", planted), *setting):
                missed.append(name)
        for number in range(1, given.controls + 1):
            if compared(f"control {number}", plain, plain, *setting):
                alarms.append(f"control {number}")
    print(f"planted: {len(SLOWDOWNS) - len(missed)} of {len(SLOWDOWNS)} found", *missed, sep="\n  ")
    print(f"controls: {len(alarms)} of {given.controls} with an alarm", *alarms, sep="\n  ")
    return 1 if missed or alarms else 0


if __name__ == "__main__":
    sys.exit(main())
