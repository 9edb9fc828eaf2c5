"""Whether intervals hold: over many checks, how often what was measured lies within P5 to P95."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

AIM = (0.80, 0.97)
"""Of the figures that are judged. Fewer: the intervals promise too much; more: they say too
little."""


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
        return AIM[0] <= self.share <= AIM[1]

    def __str__(self) -> str:
        text = f"{self.inside} of {self.judged} figures inside P5 to P95"
        if self.judged:
            text += f" ({self.share:.0%}; the aim is {AIM[0]:.0%} to {AIM[1]:.0%})"
        return text + (f", {self.disturbed} disturbed" if self.disturbed else "")


def coverage(judged: pd.DataFrame) -> Coverage:
    """Of the rows of `check.Check.judged`."""
    counts = judged["state"].value_counts()
    inside, outside, disturbed = (
        int(counts.get(state, 0)) for state in ("inside", "outside", "disturbed")
    )
    return Coverage(inside + outside, inside, disturbed)
