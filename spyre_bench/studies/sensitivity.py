"""Which parameter of the card decides between deployments, and so would have to be measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, replace

import pandas as pd

from spyre_bench.cost.card_parameters import LIMITS, SpyreCard
from spyre_bench.cost.card_words import CONFIDENCE, name_of, range_of
from spyre_bench.studies.capacity import Service
from spyre_bench.studies.deployments import TIE, Deployment

LEADS = [
    *("parameter", "name", "range", "unit", "confidence", "winner", "base_lead", "changes"),
    *("fast", "fast_lead", "fast_winner", "slow", "slow_lead", "slow_winner"),
]
UNTIMED = (*LIMITS, "compile_s")  # parameters that no pass depends on


def sensitivity(deployments: Iterable[Deployment], service: Service) -> pd.DataFrame:
    """Capacities with one parameter of the card moved to one of its ends and all others at their
    value, each deployment with the set of buckets that serves it best there.

    One row per parameter, end and deployment that is not refused: parameter, name and range (in
    people's words and units), unit, confidence, end ("fast", "slow"), number (of the parameter),
    cards, tp, replicas, deployment, capacity_rps_a_card, and base_rps_a_card, with nothing moved.
    """
    rows = []
    for deployment in deployments:
        if deployment.refused or deployment.cost is None:
            continue
        base, (base_rps, _) = deployment.costs(), deployment.capacity(service)
        for name, end, card in _moved(deployment.cost.card):
            there = replace(deployment, cost=replace(deployment.cost, card=card))
            moves = there.costs() != base  # else it plays no part, as an all-reduce on one card
            rps = there.capacity(service)[0] if moves else base_rps
            known = deployment.cost.card
            parameter = getattr(known, name)
            rows.append(
                {"parameter": name, "name": name_of(name), "range": range_of(known, name)}
                | {"unit": parameter.unit, "confidence": CONFIDENCE[parameter.confidence]}
                | {"end": end, "number": getattr(parameter, end), **deployment.names}
                | {"capacity_rps_a_card": rps / deployment.cards}
                | {"base_rps_a_card": base_rps / deployment.cards}
            )
    return pd.DataFrame(rows)


def _moved(card: SpyreCard) -> Iterator[tuple[str, str, SpyreCard]]:
    for parameter in fields(card):
        known = getattr(card, parameter.name)
        if parameter.name not in UNTIMED and known.fast != known.slow:
            for end in ("fast", "slow"):
                yield parameter.name, end, card.fixed(**{parameter.name: getattr(known, end)})


def tornado(moved: pd.DataFrame) -> pd.DataFrame:
    """By how much the winner of `sensitivity` leads as each parameter moves, the widest first.

    The winner is the deployment with the largest capacity while nothing is moved, ties going to
    the smaller engines. One row per parameter: parameter, name, range, unit, confidence, fast and
    slow (its numbers), winner, base_lead, fast_lead and slow_lead (requests/s per card over the
    best other; below 0 it has lost), fast_winner, slow_winner, changes (another leads by more than
    `TIE`). Parameters that move no lead have no row; where one deployment is all there is, nothing
    leads. Raises ValueError for several numbers of cards.
    """
    if moved["cards"].nunique() > 1:
        raise ValueError("a tornado compares deployments of one number of cards: give these")
    if moved["deployment"].nunique() < 2:
        return pd.DataFrame(columns=LEADS)
    base = moved.groupby("deployment", sort=False)["base_rps_a_card"].first()
    winner = str(base.idxmax())
    rows = []
    for name, moves in moved.groupby("parameter", sort=False):
        row = {"parameter": name, **moves[["name", "range", "unit", "confidence"]].iloc[0]}
        row |= {"winner": winner, "base_lead": _lead(base, winner), "changes": False}
        for end, at in moves.groupby("end", sort=False):
            rps = at.set_index("deployment")["capacity_rps_a_card"]
            lead = _lead(rps, winner)
            row |= {end: at["number"].iloc[0], f"{end}_lead": lead, f"{end}_winner": rps.idxmax()}
            row["changes"] |= bool(lead < -TIE * rps.max())
        rows.append(row)
    frame = pd.DataFrame(rows)
    leads = frame[["base_lead", "fast_lead", "slow_lead"]]
    frame["width"] = leads.max(axis=1) - leads.min(axis=1)
    frame = frame[frame["width"] > 0].sort_values("width", ascending=False, kind="stable")
    return frame.drop(columns="width").reset_index(drop=True)


def deciding(leads: pd.DataFrame) -> list[str]:
    """The parameters of a `tornado` that change the choice, in words and with their range."""
    rows = leads[leads["changes"].astype(bool)]
    return [f"{name} ({range_})" for name, range_ in zip(rows["name"], rows["range"], strict=True)]


def said(moved: pd.DataFrame, leads: pd.DataFrame) -> str:
    """What would have to be measured to choose between the deployments of `sensitivity`, of what
    `tornado` gives, in a sentence."""
    if moved["deployment"].nunique() < 2:
        return "No other division can be: there is nothing to decide."
    if names := ", ".join(deciding(leads)):
        return f"Moved by itself, {names} would change the choice: that has to be measured."
    return "Moved by itself, no parameter would change the choice."


def unless(moved: pd.DataFrame, leads: pd.DataFrame) -> str:
    """What would change the answer."""
    if moved["deployment"].nunique() < 2:
        return "other cards or another number of them: then there is a choice."
    return f"a measured value of {' or '.join(deciding(leads)) or 'several parameters at once'}."


def _lead(rps: pd.Series, winner: str) -> float:
    return float(rps[winner] - rps.drop(winner).max())
