"""The second and third of three errors: how far passes were from their constants, and what a load
makes of it. (The first is `decisions`.)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spyre_bench.cost.spread import log_deviation
from spyre_bench.validate.constants import Constants
from spyre_bench.workload.workload import Workload

PER_CENT = np.linspace(-4, 4, 9)
"""Changes of pass time over which the amplification is taken."""


@dataclass(frozen=True)
class CostErrors:
    """Measured passes over their constants. Shares: 0.05 is 5 %."""

    bias: float  # all of the run's passes together took longer by
    spread: float  # standard deviation of single passes, as their interquartile range has it
    drift: float  # the second half of the passes against the first


def cost_errors(passes: Any, constants: Constants) -> CostErrors:
    """Of the passes that another one follows at once, see `Constants.timed`."""
    some = constants.timed(passes)
    taken_s, constant_s = some["slot_s"].to_numpy(), some["expected_s"].to_numpy()
    half = len(some) // 2
    first, second = (
        taken_s[part].sum() / constant_s[part].sum() for part in (slice(half), slice(half, None))
    )
    return CostErrors(
        bias=float(taken_s.sum() / constant_s.sum() - 1),
        spread=log_deviation(taken_s / constant_s),
        drift=float(second / first - 1) if half else 0.0,
    )


@dataclass(frozen=True)
class Amplification:
    """What one per cent more pass time does to a run's median E2EL."""

    seconds_per_per_cent: float
    per_cent_per_per_cent: float  # 1 where nobody waits for others


def amplification(constants: Constants, workload: Workload) -> Amplification:
    """The slope of the median E2EL over the time of all passes, within 4 % of the constants: a run
    at one other pace may form other batches by chance."""
    medians_s = []
    for change in PER_CENT:
        run = constants.scaled(1 + change / 100).simulate(workload)
        medians_s.append(float(np.median(run.e2el_s[run.served])))
    slope = float(np.polyfit(PER_CENT, medians_s, 1)[0])
    return Amplification(slope, 100 * slope / float(np.mean(medians_s)))
