"""Whether predictions hold: over many checks, how often what was measured lies within P5 to P95,
and which aims were met."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

LEAST, MOST = 0.80, 0.97
"""Of the judged figures, those inside of their intervals. Fewer: the intervals promise too much;
more: they say too little."""
ENOUGH = 60  # judged figures, of twenty checks: fewer cannot tell 97 % from all
MEDIAN_ERROR, TAIL_ERROR = 0.03, 0.10  # of the point prediction


@dataclass(frozen=True)
class Coverage:
    """How many of the judged figures were inside their intervals. A disturbed check is neither."""

    judged: int
    inside: int
    disturbed: int

    @property
    def share(self) -> float:
        """Of the judged; nan of none."""
        return self.inside / self.judged if self.judged else float("nan")

    @property
    def holds(self) -> bool:
        """Whether the share is as aimed at; of few figures all may be inside."""
        return self.share >= LEAST and (self.share <= MOST or self.judged < ENOUGH)

    def __str__(self) -> str:
        text = f"{self.inside} of {self.judged} figures inside P5 to P95"
        if self.judged:
            text += f" ({self.share:.0%}; the aim is {LEAST:.0%} to {MOST:.0%})"
        return text + (f", {self.disturbed} disturbed" if self.disturbed else "")


def coverage(judged: pd.DataFrame) -> Coverage:
    """Of the rows of `check.Check.judged`."""
    counts = judged["state"].value_counts()
    inside, outside, disturbed = (
        int(counts.get(state, 0)) for state in ("inside", "outside", "disturbed")
    )
    return Coverage(inside + outside, inside, disturbed)


class Aim(NamedTuple):
    """What was aimed at; `met` is None where the machine was disturbed throughout."""

    name: str
    met: bool | None
    evidence: str


def aims(judged: pd.DataFrame, told_apart: pd.DataFrame, errors: pd.DataFrame) -> Iterator[Aim]:
    """From what checks say: rows of `Check.judged`, `Check.told_apart` and `Check.by_quantity`.
    Points are held against their aims in the checks that were not disturbed."""
    agree = told_apart["decisions_agree"]
    others = ", ".join(told_apart.loc[~agree, "run"]) or "none"
    yield Aim(
        "the simulator decides as the server: the same batches or passes, every request within "
        "10 ms",
        bool(agree.all()),
        f"{agree.sum()} of {len(agree)} runs; otherwise: {others}",
    )
    held = coverage(judged)
    yield Aim(
        "nine of ten measured figures are within P5 to P95",
        held.holds if held.judged else None,
        str(held),
    )
    quiet = told_apart.loc[~told_apart["disturbed"], "run"]
    for quantity, aim in (
        ("E2EL median [s]", MEDIAN_ERROR),
        ("requests/s", MEDIAN_ERROR),
        ("E2EL P99 [s]", TAIL_ERROR),
    ):
        off = errors[errors["quantity"] == quantity].set_index("run")["error"].abs()
        yield _point(f"the point of {quantity.split(' [')[0]} is within {aim:.0%}", off, quiet, aim)


def _point(name: str, off: pd.Series, quiet: pd.Series, aim: float) -> Aim:
    some = off[off.index.isin(quiet)]
    if some.empty:
        return Aim(name, None, "every run was disturbed")
    return Aim(name, bool(some.max() <= aim), f"off by {some.max():.1%} in {some.idxmax()}")
