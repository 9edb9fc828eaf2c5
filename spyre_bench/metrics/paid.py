"""The waste ledger in seconds: what the padding of static batches costs, by the passes that would
have been enough without it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd

from spyre_bench.cost.bucket_cost import BucketCost, CostModel
from spyre_bench.metrics.waste import LEDGER, of_passes
from spyre_bench.shapes import STICK_TOKENS, Bucket
from spyre_bench.simulate.result import PREFILL, StaticRun


def paid_beside_slots(run: StaticRun, model: CostModel) -> pd.DataFrame:
    """Each part of the waste ledger that there is: part, slots (share of all computed), alike
    (share of the busy seconds if every slot of a pass cost alike), paid (share that it really
    costs), and paid_share (paid over alike: 1 where a padded slot is a cost in full, 0 where it is
    none; nan of useful slots).

    What padding costs is what a pass takes beyond one of the shape that would have been enough, by
    the model: without the rows that nobody has (batch_pad), then as long as the longest prompt
    (bucket_pad), then as the mean of passes as long as each prompt (prompt_pad); of decode, with as
    many rows as still have tokens to come (decode_tail). Prompts are padded to whole sticks, which
    count as needed: nothing finer compiles. Below 0 where the larger shape is the faster one.
    Where the model has no figure for a smaller shape, nobody knows: paid is nan.
    """
    seconds = run.passes.seconds * run.passes.count
    parts = of_passes(run)
    slots = pd.Series({name: int(tokens.sum()) for name, tokens in parts.items()})
    per_slot = run.passes.seconds / run.passes.slots
    alike = pd.Series({name: float(per_slot @ tokens) for name, tokens in parts.items()})
    try:
        paid = _paid_s(run, model)
    except ValueError:  # a table of one batch size, say
        paid = pd.Series(np.nan, index=LEDGER)
    frame = pd.DataFrame(
        {
            "part": list(LEDGER),
            "slots": (slots / slots.sum()).to_numpy(),
            "alike": (alike / seconds.sum()).to_numpy(),
            "paid": (paid / seconds.sum()).to_numpy(),
        }
    )
    frame = frame[frame["slots"] > 0].reset_index(drop=True)
    share = frame["paid"] / frame["alike"]
    return frame.assign(paid_share=share.where(frame["part"] != "useful"))


def _paid_s(run: StaticRun, model: CostModel) -> pd.Series:
    """Seconds of the run by part of the ledger; they add up to its busy seconds."""
    passes, prompts = run.passes, run.workload.prompt_tokens
    needed = _Needed(model)
    found = dict.fromkeys(LEDGER, 0.0)
    longest: dict[int, int] = {}  # prompt of the batch, in sticks
    for row in range(len(passes)):
        members, tokens, _ = passes.of_row(row)
        cost, batch = run.costs[passes.shape[row]], int(passes.batch[row])
        took_s = float(passes.seconds[row] * passes.count[row])
        if passes.kind[row] == PREFILL:
            sticks = -(-prompts[members] // STICK_TOKENS) * STICK_TOKENS
            longest[batch] = int(sticks.max())
            parts = needed.of_prefill(cost, sticks)
        else:
            parts = needed.of_decode(cost, longest[batch], tokens)
        scale = took_s / sum(parts.values())  # a pass may have been drawn slower than its cost
        for name, seconds in parts.items():
            found[name] += seconds * scale
    return pd.Series(found)


class _Needed:
    """What a pass of a bucket is paid for, by passes of smaller ones."""

    def __init__(self, model: CostModel) -> None:
        self._of = cache(model.of)

    def of_prefill(self, cost: BucketCost, sticks: np.ndarray) -> dict[str, float]:
        """Seconds by part, of one prefill: `sticks` are the prompts' lengths in whole sticks."""
        bucket, rows = cost.bucket, len(sticks)
        in_use = self._cost(bucket, rows, bucket.prompt_length).prefill_s
        trimmed = self._cost(bucket, rows, int(sticks.max())).prefill_s
        each = [self._cost(bucket, rows, int(length)).prefill_s for length in sticks]
        useful = float(np.mean(each))
        return {
            "useful": useful,
            "batch_pad": cost.prefill_s - in_use,
            "bucket_pad": in_use - trimmed,
            "prompt_pad": trimmed - useful,
        }

    def of_decode(self, cost: BucketCost, longest: int, tokens: np.ndarray) -> dict[str, float]:
        """Seconds by part, of the decode passes of a batch whose rows get so many tokens."""
        bucket, rows, count = cost.bucket, len(tokens), int(tokens.max())
        in_use = self._cost(bucket, rows, bucket.prompt_length).decode_s
        trimmed = self._cost(bucket, rows, longest).decode_s
        ends = np.append(np.sort(tokens)[::-1], 0)
        useful = sum(
            self._cost(bucket, live, longest).decode_s * int(ends[live - 1] - ends[live])
            for live in range(1, rows + 1)
            if ends[live - 1] > ends[live]
        )
        return {
            "useful": useful,
            "batch_pad": count * (cost.decode_s - in_use),
            "bucket_pad": count * (in_use - trimmed),
            "decode_tail": count * trimmed - useful,
        }

    def _cost(self, bucket: Bucket, rows: int, prompt_length: int) -> BucketCost:
        return self._of(Bucket(rows, prompt_length, bucket.new_tokens))


def paid_of_padding(beside: pd.DataFrame, parts: Sequence[str] = LEDGER[1:]) -> float:
    """Of the seconds that these parts of the ledger would cost if every slot cost alike, the share
    that they do; 0 where there is no padding, nan where nobody knows."""
    wasted = beside[beside["part"].isin(parts)]
    alike = float(wasted["alike"].sum())
    return float(wasted["paid"].sum(skipna=False)) / alike if alike else 0.0


def said(beside: pd.DataFrame) -> str:
    """What padding is paid, in a sentence, with the parts that cost most and least of what they
    would if every slot cost alike."""
    wasted = beside[beside["part"] != "useful"]
    if wasted.empty:
        return "Nothing is padding."
    if wasted["paid"].isna().any():
        return (
            f"Padding is {wasted['slots'].sum():.0%} of the slots; what it costs in seconds is not "
            f"known, since the costs have no figure for passes of fewer rows or shorter prompts."
        )
    ordered = wasted.sort_values("paid_share", ascending=False).to_dict("records")
    ends = ordered[:1] + ordered[1:][-1:]
    parts = ", ".join(f"{it['part'].replace('_', ' ')} {it['paid_share']:.0%}" for it in ends)
    return (
        f"Padding is {wasted['slots'].sum():.0%} of the slots and costs {wasted['paid'].sum():.0%} "
        f"of the seconds: {paid_of_padding(beside):.0%} of what it would if every slot of a pass "
        f"cost alike ({parts})."
    )
