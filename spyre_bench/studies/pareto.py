"""Tokens/s per card against tokens/s per user: what any way to serve the same requests on the same
cards offers, and which ways no other beats in both.

A setup divides the cards into engines, and has what each of them compiles and who runs next. All
of it is a `Scenario`, so every point of the front is a plain simulation, which anybody can repeat.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spyre_bench import files
from spyre_bench.choose.advise import advise, within
from spyre_bench.choose.advise_shapes import Engine, advise_shapes
from spyre_bench.choose.optimize import Limits
from spyre_bench.choose.schemes import doublings
from spyre_bench.choose.visits import ShapeLimits
from spyre_bench.cost.bucket_cost import BucketCost, CostModel
from spyre_bench.cost.source import cards_of, on_cards
from spyre_bench.cost.spread import Draw, Spread
from spyre_bench.metrics import summary
from spyre_bench.metrics.bounds import shares_s, step_shares_s
from spyre_bench.metrics.intervals import Intervals
from spyre_bench.shape_set import BLOCK_TOKENS
from spyre_bench.simulate.result import SimulatedRun
from spyre_bench.simulate.scenario import Scenario
from spyre_bench.studies.deployments import divisions
from spyre_bench.studies.under_load import at_rate
from spyre_bench.workload.workload import Workload

LOADS = (0.1, 0.2, 0.4, 0.6, 0.8, 0.9)  # shares of what a setup serves with everybody queued
POLICIES = ("best_fit", "skip")  # of static batching: ours, and upstream's
DECODES_BETWEEN = (1, 4)  # decode passes between two chunks of continuous batching
AXES = USER, CARD = ["tokens_per_s_per_user", "tokens_per_s_per_card"]
TODAY, ADVISED = "today", "advised"
REPLICATIONS = 20  # the fewest that a P5 can be told from


@dataclass(frozen=True)
class Setup:
    """Some cards as engines of `tp` cards each: a scenario, and what its sets are called."""

    name: str  # of the set of buckets or shapes
    tp: int
    scenario: Scenario
    source: CostModel

    @property
    def cards(self) -> int:
        return self.tp * self.scenario.replicas

    @property
    def rule(self) -> str:
        """Who runs next, in a word or two."""
        if not self.scenario.is_continuous:
            return self.scenario.policy
        between = f"decode_between {self.scenario.decode_between}"
        return between if self.scenario.layout == "ragged" else f"{self.scenario.layout}, {between}"

    @property
    def label(self) -> str:
        """Such as "continuous, 2 × TP 2, one symbolic shape, decode_between 4"; one decode pass
        between chunks goes without saying."""
        batching, replicas = self.scenario.batching, self.scenario.replicas
        said = [batching, f"{replicas} × TP {self.tp}", self.name, *self.rule.split(", ")]
        return ", ".join(word for word in said if word != "decode_between 1")

    @cached_property
    def costs(self) -> tuple[BucketCost, ...]:
        """Of its buckets, under static batching."""
        return self.scenario.costs(self.source)

    def takes(self, workload: Workload) -> np.ndarray:
        """bool [n], the requests that it does not refuse."""
        if self.scenario.is_continuous:
            shares = step_shares_s(workload, self.scenario.shape_costs(self.source))
        else:
            shares = shares_s(workload, self.costs)
        return np.isfinite(shares)

    def run(self, workload: Workload, draw: Draw | None = None) -> SimulatedRun:
        """Serves it; with a `draw` passes take what that says."""
        if self.scenario.is_continuous:
            return self.scenario.run_continuous(workload, self.source, draw)
        return self.scenario.run(workload, self.costs, draw)

    def spread(self) -> Spread | None:
        """How far its passes may be from their costs, where the source says."""
        if self.scenario.is_continuous:
            return self.source.spread_of_shapes(self.scenario.shape_costs(self.source))
        return self.source.spread(self.costs)


@dataclass(frozen=True, eq=False)
class Front:
    """What all setups offer for the same requests."""

    setups: list[Setup]  # today's is the last
    refused: dict[str, str]  # why a division of the cards cannot be, by its name
    workload: Workload  # the requests that every setup takes
    left_out: int  # the others
    points: pd.DataFrame  # of `points`
    bands: pd.DataFrame  # of `bands`: the front, and the marked rows

    @property
    def gain(self) -> float:
        """Tokens/s per card of the advised setup over today's; nan where today's is saturated at
        every load."""
        now, best = (self._marked(mark) for mark in (TODAY, ADVISED))
        return float("nan") if now is None or best is None else float(best[CARD] / now[CARD])

    @property
    def verdict(self) -> str:
        """What it comes to, in words."""
        now, best = (self._marked(mark) for mark in (TODAY, ADVISED))
        if now is None or best is None:
            return "today's setup is saturated at every load"
        speed = f"{now[USER]:.2g} tokens/s per user"
        if now["mark"] == best["mark"]:
            return f"at {speed} nothing serves more tokens/s per card than today's {now[CARD]:.3g}"
        return (
            f"at {speed} today's setup serves {now[CARD]:.3g} tokens/s per card, and "
            f"“{best['label']}” serves {self.gain:.2f} times as many"
        )

    def repeated(self) -> float:
        """The marked rows simulated again: the largest relative difference of either axis."""
        off = [0.0]
        for row in self.bands[self.bands["mark"].ne("")].to_dict("records"):
            setup = self.setups[row["setup"]]
            again = figures(setup.run(at_rate(self.workload, row["rate_rps"])), setup.cards)
            off += [abs(again[axis] / row[axis] - 1) for axis in AXES]
        return max(off)

    def _marked(self, mark: str) -> pd.Series | None:
        rows = self.bands[self.bands["mark"].str.contains(mark)]
        return None if rows.empty else rows.iloc[0]


def front(
    base: Scenario,
    now: str,
    cards: int,
    graphs: int,
    engine: Engine,
    load: float,
    loads: Sequence[float] = LOADS,
) -> Front:
    """Every setup of so many cards for the workload and the source of costs of `base`, today's
    (`today`) among them, marked at `load`; `engine` has the most rows and the longest chunk."""
    asked = base.load_workload()
    found, refused = setups(base, asked, cards, graphs, engine)
    found.append(today(base, now, cards))
    workload = shared(asked, found)
    rows = points(workload, found, loads)
    shown = bands(marked(rows, load), found, workload, seed=base.seed)
    return Front(found, refused, workload, len(asked) - len(workload), rows, shown)


# --- which there are ------------------------------------------------------------------------------


def setups(
    base: Scenario, workload: Workload, cards: int, graphs: int, engine: Engine
) -> tuple[list[Setup], dict[str, str]]:
    """Every division of the cards into engines, with every set of buckets and of shapes that
    `advise` and `advise_shapes` hold against each other for that engine (at most `graphs` of ours,
    and other stacks' schemes), under every rule of `POLICIES` and `DECODES_BETWEEN`.

    `base` has the workload's settings and the source of costs. A measured table is of one engine,
    which counts as a card. The second value says why a division cannot be, by its name.
    """
    found, refused = [], {}
    for tp, replicas in divisions(cards):
        try:
            asked = replace(base, cost=on_cards(base.cost, tp))
            source = asked.load_cost()
        except ValueError as refusal:
            refused[f"{replicas} × TP {tp}"] = str(refusal)
            continue
        asked = replace(asked, replicas=replicas, router="least_loaded")
        for batching, sets in (("static", _static), ("continuous", _continuous)):
            try:
                for name, scenario in sets(asked, workload, source, graphs, engine):
                    found.append(Setup(name, tp, scenario, source))
            except ValueError as refusal:
                refused[f"{batching}, {replicas} × TP {tp}"] = str(refusal)
    return found, refused


def _static(
    asked: Scenario, workload: Workload, source: CostModel, graphs: int, engine: Engine
) -> Iterator[tuple[str, Scenario]]:
    covered = within(workload, source)
    sizes = doublings(1, engine.rows)
    advice = advise(covered, source, Limits(graphs), batch_sizes=sizes, policy=asked.rules())
    sets = advice.contenders[["name", "buckets"]].itertuples(index=False)
    for (name, buckets), policy in itertools.product(sets, POLICIES):
        yield name, replace(asked, buckets=buckets, policy=policy)


def _continuous(
    asked: Scenario, workload: Workload, source: CostModel, graphs: int, engine: Engine
) -> Iterator[tuple[str, Scenario]]:
    """The pool of blocks is what the widest shape fills; of a card that holds less, of half as many
    rows, and so on."""
    covered, rules = within(workload, source), asked.step_rules(source)
    rows = engine.rows
    while True:
        try:
            narrower = replace(engine, rows=rows)
            advice = advise_shapes(covered, source, ShapeLimits(graphs), narrower, rules)
            break
        except ValueError:
            if rows == 1:
                raise
            rows //= 2
    asked = replace(asked, batching="continuous", blocks=advice.costs.blocks)
    sets = advice.contenders[["name", "prefill", "decode"]].itertuples(index=False)
    for (name, prefill, decode), between in itertools.product(sets, DECODES_BETWEEN):
        shapes = replace(asked, prefill_shapes=prefill, decode_shapes=decode)
        yield name, replace(shapes, decode_between=between)


def today(base: Scenario, text: str, cards: int) -> Setup:
    """What a deployment has: `prefill=512/64,4096/64 decode=32/1,4096/64`, or
    `buckets=4,1024,256 4,4096,512`, on the source of costs that `base` names, as often as the cards
    hold it, under upstream's rules. Its pool of blocks is what the card's limit on rows × context
    lets it use.

    Raises ValueError for another word, for a source of more cards, and for what the source refuses.
    """
    source = base.load_cost()
    tp = cards_of(base.cost)
    if cards % tp:
        raise ValueError(f"{cards} cards are no whole number of engines of {tp}: use {cards * tp}")
    given = _words(text)
    asked = replace(base, replicas=cards // tp, router="least_loaded")
    if "buckets" in given:
        scenario = replace(asked, policy="skip", buckets=given["buckets"])
        scenario.costs(source)
        return Setup("as given", tp, scenario, source)
    limit = source.batch_tokens
    blocks = None if limit is None else limit // BLOCK_TOKENS
    scenario = replace(
        asked,
        batching="continuous",
        layout="rectangular",
        blocks=blocks,
        prefill_shapes=given["prefill"],
        decode_shapes=given["decode"],
    )
    scenario.shape_costs(source)
    return Setup("as given", tp, scenario, source)


def _words(text: str) -> dict[str, str]:
    """The settings of a text: a word with = begins one, others go on with it."""
    found: dict[str, list[str]] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if equals:
            found[name] = [value]
        elif found:
            next(reversed(found.values())).append(word)
    if set(found) not in ({"buckets"}, {"prefill", "decode"}):
        raise ValueError(
            f"today {text!r} is no deployment: write prefill=512,4096 decode=8,4096, or "
            f"buckets=4,1024,256"
        )
    return {name: " ".join(words) for name, words in found.items()}


def shared(workload: Workload, of: Iterable[Setup]) -> Workload:
    """The requests that every setup takes, so that all of them do the same work. ValueError where
    there is none."""
    return workload.only(
        np.logical_and.reduce([setup.takes(workload) for setup in of]),
        f"no request of {workload.name} is taken by every setup: give today's longer shapes, or "
        f"scale the lengths down",
    )


# --- what they offer ------------------------------------------------------------------------------


def points(workload: Workload, of: Sequence[Setup], loads: Sequence[float] = LOADS) -> pd.DataFrame:
    """One row per setup and load, a share of what it serves with everybody queued: setup (its place
    in `of`), label, batching, tp, replicas, name, rule, load, rate_rps (of all cards), the two axes
    (`figures`), median_ttft_s, median_tpot_s, saturated."""
    rows = []
    for place, setup in enumerate(of):
        names = {
            "setup": place,
            "label": setup.label,
            "batching": setup.scenario.batching,
            "tp": setup.tp,
            "replicas": setup.scenario.replicas,
            "name": setup.name,
            "rule": setup.rule,
        }
        for load, rate_rps, run in _at_loads(setup, workload, loads):
            said = {
                "median_ttft_s": float(np.median(run.ttft_s)),
                "median_tpot_s": float(np.nanmedian(run.requests.tpot_s)),
                "saturated": bool(summary.saturation(run)),
            }
            asked = {"load": load, "rate_rps": rate_rps}
            rows.append({**names, **asked, **figures(run, setup.cards), **said})
    return pd.DataFrame(rows)


def _at_loads(
    setup: Setup, workload: Workload, loads: Iterable[float], draw: Draw | None = None
) -> Iterator[tuple[float, float, SimulatedRun]]:
    """Each load, its rate in requests/s, and the run at it."""
    waiting = setup.run(workload.with_arrivals("all"), draw)
    most_rps = len(workload) / summary.duration_s(waiting)
    for load in loads:
        rate_rps = load * most_rps
        yield load, rate_rps, setup.run(at_rate(workload, rate_rps), draw)


def figures(run: SimulatedRun, cards: int) -> dict[str, float]:
    """The two axes. Of a card: output tokens of all requests, from the first arrival to the last
    token, over seconds and cards. Of a user: output tokens of a request over the seconds from its
    arrival to its last token, the median, so that a wait for the first token counts."""
    served = run.served
    tokens = run.workload.output_tokens[served]
    return {
        USER: float(np.median(tokens / run.e2el_s[served])),
        CARD: float(tokens.sum(dtype=np.int64)) / summary.duration_s(run) / cards,
    }


def on_front(frame: pd.DataFrame) -> pd.Series:
    """bool: the rows that no other beats, with at least as much on both axes and more on one; of
    equal rows the first. A saturated row, which says how long it was measured, neither is one nor
    beats one."""
    user, card = (frame[axis].to_numpy() for axis in AXES)
    steady = ~frame["saturated"].to_numpy(dtype=bool)
    place = np.arange(len(frame))
    no_less = (user[:, None] >= user) & (card[:, None] >= card)
    more = (user[:, None] > user) | (card[:, None] > card)
    beaten = (no_less & (more | (place[:, None] < place)) & steady[:, None]).any(axis=0)
    return pd.Series(steady & ~beaten, index=frame.index)


def marked(frame: pd.DataFrame, load: float) -> pd.DataFrame:
    """The rows of `points`, the last setup being today's, with `front`, and `mark`: today's row at
    the load nearest to `load`, and the advised one, which of all rows with at least as many
    tokens/s per user has the most per card. Where nothing is better, that is today's own row. None
    is marked where today's is saturated at every load."""
    frame = frame.assign(front=on_front(frame), mark="")
    ours = frame[(frame["setup"] == frame["setup"].max()) & ~frame["saturated"]]
    if ours.empty:
        return frame
    now = (ours["load"] - load).abs().idxmin()
    as_fast = frame[(frame[USER] >= frame.at[now, USER]) & ~frame["saturated"]]
    best = as_fast.sort_values([CARD, USER]).index[-1]
    frame.loc[now, "mark"] = TODAY
    frame.loc[best, "mark"] = ADVISED if best != now else f"{TODAY}, {ADVISED}"
    return frame


def bands(
    frame: pd.DataFrame,
    of: Sequence[Setup],
    workload: Workload,
    *,
    seed: int = 0,
    replications: int = REPLICATIONS,
) -> pd.DataFrame:
    """The rows of `marked` that are on the front or marked, with P5 to P95 of both axes (`low_…`,
    `high_…`; nan without a spread) over engines whose passes take what the spread of their costs
    draws, each at the load of the row: that share of what this engine turns out to serve.
    `low_front` and `high_front` say which of these ends no other beats."""
    shown = frame[frame["front"] | frame["mark"].ne("")]
    found = []
    for place, setup in enumerate(of):
        rows = shown[shown["setup"] == place]
        if rows.empty:
            continue
        spread = setup.spread()
        drawn = None
        if spread is not None:
            draws = spread.draws(replications, seed)
            offers = [_offers(setup, workload, rows["load"], draw) for draw in draws]
            drawn = Intervals(spread, seed, pd.DataFrame(offers))
        for axis in AXES:
            ends = [
                (np.nan, np.nan) if drawn is None else drawn[f"{axis} at {load}"]
                for load in rows["load"]
            ]
            rows = rows.assign(**{f"low_{axis}": [low for low, _ in ends]})
            rows = rows.assign(**{f"high_{axis}": [high for _, high in ends]})
        found.append(rows)
    frame = pd.concat(found).sort_values([USER, CARD]).reset_index(drop=True)
    for end in ("low", "high"):
        corners = frame.assign(**{axis: frame[f"{end}_{axis}"] for axis in AXES})
        known = corners[AXES].notna().all(axis=1)
        frame[f"{end}_front"] = on_front(corners) & frame["front"] & known
    return frame


def _offers(
    setup: Setup, workload: Workload, loads: Iterable[float], draw: Draw
) -> dict[str, float]:
    return {
        f"{axis} at {load}": value
        for load, _, run in _at_loads(setup, workload, loads, draw)
        for axis, value in figures(run, setup.cards).items()
    }


# --- what was measured ----------------------------------------------------------------------------


def measured(text: str) -> pd.DataFrame:
    """The points of results of `vllm bench serve --save-result --save-detailed`, given as
    `CARDS:FILE CARDS:FILE`: one row each with label (the file's name), cards and the two axes, as
    `figures` has them. Empty for an empty text.

    Raises ValueError for a word without cards, and for a result without its requests.
    """
    rows = []
    for word in text.split():
        cards, colon, name = word.partition(":")
        if not (colon and name and cards.isdigit() and int(cards)):
            raise ValueError(
                f"measured {word!r} is not CARDS:FILE: write, for example, 4:result.json"
            )
        path = Path(name)
        axes = _axes(path, files.read_json(path), int(cards))
        rows.append({"label": path.name, "cards": int(cards), **axes})
    return pd.DataFrame(rows, columns=["label", "cards", *AXES])


def _axes(path: Path, result: Mapping[str, Any], cards: int) -> dict[str, float]:
    columns = [result.get(name) for name in ("output_lens", "ttfts", "itls")]
    lists = [column for column in columns if isinstance(column, list)]
    if len(lists) < len(columns) or len({len(it) for it in lists}) > 1 or "duration" not in result:
        raise ValueError(
            f"{path} is not a result of vllm bench serve with its requests: save it with "
            f"--save-result --save-detailed"
        )
    requests = zip(*lists, strict=True)
    served = [(tokens, ttft + sum(gaps)) for tokens, ttft, gaps in requests if tokens and ttft]
    if not served:
        raise ValueError(f"{path}: no request of it was served: nothing to draw")
    tokens, seconds = np.array(served).T
    return {
        USER: float(np.median(tokens / seconds)),
        CARD: float(tokens.sum()) / result["duration"] / cards,
    }
