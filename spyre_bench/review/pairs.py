"""Is the new one slower than the base, and by how much? Both measured in turns, pair by pair.

What slows the machine down for a while slows both of a pair, so its ratio stays. A sign test of
these ratios (exact, and whatever their distribution) asks whether the median is beyond the smallest
change that matters: two processes of the same code differ for as long as they live, mostly by a
little, and enough pairs would prove that too. So pairs are to be of several starts; then a process
that drew much slower memory is outvoted.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, quantile_test

LEAST = 0.03  # relative; the smallest change that matters
RISK = 0.01  # of any alarm where nothing changed
CONFIDENCE = 0.95  # of the interval that is shown
STATES = ("slower", "too few pairs", "faster", "same")
COLUMNS = ["figure", "state", "ratio", "low", "high", "p", "pairs"]


def judge(pairs: pd.DataFrame, least: float = LEAST, risk: float = RISK) -> pd.DataFrame:
    """One row for each figure, in the order of STATES.

    `pairs` has a row for each figure of a pair: figure; base and new, two measurements of which a
    larger one is slower.

    Columns: figure; state, `slower` or `faster` where the median ratio of new to base is beyond
    1 + `least` (or below 1 / (1 + `least`)), `same` where it is between the two, `too few pairs`
    where none of these is certain; ratio, that median; low and high, its interval of 95 %; p, the
    chance of so many slower pairs if the median were 1 + `least`, as the state goes by it; pairs.
    Each state is wrong with a chance of at most `risk`; that holds for all figures together where
    nothing changed (Benjamini and Hochberg), provided that pairs do not hang on each other. Those
    of one start do, by what its two processes differ.
    Raises ValueError for a measurement that is not above 0, and for limits that are none.
    """
    require_limits(least, risk)
    logs = {str(figure): _ratios(str(figure), of) for figure, of in pairs.groupby("figure")}
    beyond = np.log1p(least)
    p = {
        "slower": np.array([_p(it, beyond, "greater") for it in logs.values()]),
        "faster": np.array([_p(it, -beyond, "less") for it in logs.values()]),
        "same": np.array(
            [max(_p(it, beyond, "less"), _p(it, -beyond, "greater")) for it in logs.values()]
        ),
    }
    p = {state: false_discovery_control(of) if logs else of for state, of in p.items()}
    rows = []
    for place, (figure, ratios) in enumerate(logs.items()):
        state = next((name for name in p if p[name][place] <= risk), "too few pairs")
        low, high = _interval(ratios)
        middle = float(np.exp(np.median(ratios)))
        rows.append((figure, state, middle, low, high, p["slower"][place], len(ratios)))
    frame = pd.DataFrame(rows, columns=COLUMNS)
    order = frame["state"].map(STATES.index)
    return frame.loc[order.sort_values(kind="stable").index].reset_index(drop=True)


def require_limits(least: float, risk: float = RISK) -> None:
    """Raises ValueError for a smallest change, or a risk, that is none."""
    if not (least >= 0 and np.isfinite(least)):
        raise ValueError(f"least {least} is not a change from 0 on: give 0.03 for 3 %")
    if not 0 < risk < 0.5:
        raise ValueError(f"risk {risk} is not between 0 and 0.5: give 0.01 for one alarm in 100")


def _ratios(figure: str, pairs: pd.DataFrame) -> NDArray[np.float64]:
    """Logarithms of new over base."""
    values = pairs[["base", "new"]].to_numpy(dtype=float)
    wrong = values[~(np.isfinite(values) & (values > 0))]
    if len(wrong):
        raise ValueError(f"{figure} was measured as {wrong[0]:g}: a ratio needs numbers above 0")
    return np.log(values[:, 1] / values[:, 0])


def _p(
    ratios: NDArray[np.float64], median: float, alternative: Literal["less", "greater"]
) -> float:
    return float(quantile_test(ratios, q=median, p=0.5, alternative=alternative).pvalue)


def _interval(ratios: NDArray[np.float64]) -> tuple[float, float]:
    """Of the median ratio, from their logarithms; 0 or inf where there are too few for an end."""
    ends = np.asarray(quantile_test(ratios, p=0.5).confidence_interval(CONFIDENCE))
    low, high = np.where(np.isnan(ends), [0, np.inf], np.exp(ends))
    return float(low), float(high)
