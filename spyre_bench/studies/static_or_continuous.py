"""Static or continuous batching: the same requests, on the same engine's costs, under both."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from spyre_bench.choose.advise import advise, within
from spyre_bench.choose.advise_shapes import Engine, advise_shapes, within_contexts
from spyre_bench.choose.optimize import Limits
from spyre_bench.choose.schemes import doublings
from spyre_bench.choose.visits import ShapeLimits
from spyre_bench.cost.bucket_cost import BucketCost, CostModel, price
from spyre_bench.cost.shape_cost import ShapeCosts
from spyre_bench.metrics import summary, waste
from spyre_bench.metrics.bounds import bound_s, shares_s, step_shares_s
from spyre_bench.policy.continuous import Rules
from spyre_bench.policy.static import Policy
from spyre_bench.shape_set import BLOCK_TOKENS, PrefillShape, ShapeSet, blocks_of
from spyre_bench.shapes import BucketSet
from spyre_bench.simulate import continuous as paged
from spyre_bench.simulate import static
from spyre_bench.simulate.result import ContinuousRun, SimulatedRun, StaticRun
from spyre_bench.studies.under_load import at_rate
from spyre_bench.workload.workload import Workload

PAID = {
    "useful": ("useful", "useful_s"),
    "idle_rows": ("batch_pad", "decode_tail", "row_pad_s"),
    "prompt_padding": ("prompt_pad", "bucket_pad", "chunk_pad_s"),
    "wider_shape": ("shape_pad_s",),
    "again": ("again_s",),
}
"""What seconds are paid for, and the parts of either kind's ledger in it. The passes that a static
batch runs past a row's end are idle rows too."""
LONG_CHUNK = 512  # upstream's default
FEW = ShapeLimits(3)  # shapes that a server compiles within half a minute
SMALL_ENGINE = Engine(4, 128)
RATIOS = {"p95_ttft_s": "ttft_ratio", "p95_tpot_s": "tpot_ratio"}
FIGURES = ("median_ttft_s", "p95_ttft_s", "median_tpot_s", "p95_tpot_s", "p95_e2el_s")


@dataclass(frozen=True)
class Kind:
    """A way to batch, and what it compiles."""

    name: str
    graphs: int
    compile_s: float
    run: Callable[[Workload], SimulatedRun]


@dataclass(frozen=True)
class Chosen:
    """What each kind compiles on an engine, and the rules of each."""

    costs: tuple[BucketCost, ...]
    shapes: ShapeCosts
    policy: Policy
    rules: Rules

    @property
    def kinds(self) -> tuple[Kind, Kind]:
        """Static, continuous."""
        return static_kind(self.costs, self.policy), continuous_kind(self.shapes, self.rules)

    @property
    def compiled(self) -> pd.DataFrame:
        """What is compiled, in words."""
        shapes = self.shapes.shapes
        prefill, decode = (" ".join(map(str, some)) for some in (shapes.prefill, shapes.decode))
        said = {
            "static": " ".join(str(cost.bucket) for cost in self.costs),
            "continuous": f"prefill {prefill}; decode {decode}",
        }
        return pd.Series(said).to_frame("compiled")

    def priced(self, model: CostModel) -> Chosen:
        """The same on another engine."""
        buckets = [cost.bucket for cost in self.costs]
        shapes = model.of_shapes(self.shapes.shapes)
        return replace(self, costs=price(buckets, model), shapes=shapes)


def choose(
    workload: Workload,
    model: CostModel,
    graphs: int,
    engine: Engine,
    policy: Policy,
    rules: Rules,
) -> Chosen:
    """At most so many buckets, and at most so many shapes, as `advise` and `advise_shapes` have
    them."""
    sizes = doublings(1, engine.rows)
    covered = within_contexts(within(workload, model), model)
    buckets = advise(covered, model, Limits(graphs), batch_sizes=sizes, policy=policy)
    shapes = advise_shapes(covered, model, ShapeLimits(graphs), engine, rules)
    return Chosen(buckets.costs, shapes.costs, policy, rules)


class ForServers(NamedTuple):
    """What a server of each kind compiles for a few requests, and these."""

    buckets: BucketSet
    shapes: ShapeSet
    workload: Workload


def for_servers(asked: Workload, model: CostModel, policy: Policy, rules: Rules) -> ForServers:
    """Few and small enough that both servers start and answer within minutes. Requests that a
    server would refuse are left out."""
    chosen = choose(asked, model, FEW.graphs, SMALL_ENGINE, policy, rules)
    buckets = BucketSet(tuple(cost.bucket for cost in chosen.costs))
    return ForServers(buckets, chosen.shapes.shapes, fitting(asked, chosen))


def static_kind(costs: Sequence[BucketCost], policy: Policy) -> Kind:
    return Kind(
        "static",
        len(costs),
        sum(cost.compile_s for cost in costs),
        lambda workload: static.simulate(workload, costs, policy),
    )


def continuous_kind(costs: ShapeCosts, rules: Rules) -> Kind:
    return Kind(
        "continuous",
        len(costs.shapes),
        costs.compile_s,
        lambda workload: paged.simulate(workload, costs, rules),
    )


def fitting(workload: Workload, chosen: Chosen) -> Workload:
    """The requests that both kinds take. Raises ValueError where there is none."""
    fits = np.isfinite(shares_s(workload, chosen.costs))
    fits &= np.isfinite(step_shares_s(workload, chosen.shapes))
    return workload.only(
        fits,
        f"no request of {workload.name} fits both the buckets and the shapes: scale the lengths "
        f"down, or compile longer ones",
    )


def queued(workload: Workload, kinds: Sequence[Kind]) -> pd.DataFrame:
    """Each kind with all requests there from the start, so that it is never short of company: kind,
    graphs, compile_s, requests_per_s, tokens_per_s, and what `paid_at` has."""
    return _side_by_side(workload.with_arrivals("all"), kinds)


def paid_at(workload: Workload, kinds: Sequence[Kind], rate_rps: float) -> pd.DataFrame:
    """Each kind at this rate: kind, graphs, compile_s, busy_s (device seconds), bound_s (the least
    that any batching takes on what it compiles) and what the busy seconds are paid for (`PAID`),
    all per request, and the figures of `under_load`."""
    return _side_by_side(at_rate(workload, rate_rps), kinds)


def _side_by_side(arriving: Workload, kinds: Sequence[Kind]) -> pd.DataFrame:
    rows = []
    for kind in kinds:
        run = kind.run(arriving)
        n = int(run.served.sum())
        rows.append(
            {
                "kind": kind.name,
                "graphs": kind.graphs,
                "compile_s": kind.compile_s,
                "requests_per_s": n / summary.duration_s(run),
                "busy_s": summary.busy_s(run) / n,
                "bound_s": bound_s(run) / n,
                **{part: seconds / n for part, seconds in paid_for(run).items()},
                **_of(run),
            }
        )
    return pd.DataFrame(rows)


def paid_for(run: SimulatedRun) -> dict[str, float]:
    """Busy seconds by `PAID`. A static pass pays each of its slots alike, whoever is in it."""
    if isinstance(run, ContinuousRun):
        parts = asdict(waste.paid(run))
    else:
        assert isinstance(run, StaticRun)
        seconds = run.passes.seconds / run.passes.slots  # of a slot
        parts = {name: float(seconds @ tokens) for name, tokens in waste.of_passes(run).items()}
    return {name: sum(parts.get(part, 0.0) for part in of) for name, of in PAID.items()}


def under_load(
    workload: Workload, kinds: Sequence[Kind], loads: Sequence[float], capacity_rps: float
) -> pd.DataFrame:
    """Every kind at every load, a share of `capacity_rps`, with the same arrivals: kind, load,
    rate_rps, saturated, tokens_per_s, utilisation, fill, and median and P95 of TTFT, TPOT and E2EL.
    Latencies of a saturated run measure how long it is."""
    rows = []
    for kind, load in itertools.product(kinds, loads):
        run = kind.run(at_rate(workload, load * capacity_rps))
        rows.append({"kind": kind.name, "load": load, "rate_rps": load * capacity_rps, **_of(run)})
    return pd.DataFrame(rows)


def _of(run: SimulatedRun) -> dict[str, float | bool]:
    figures = summary.summary(run)
    tokens = float(run.workload.output_tokens[run.served].sum())
    return {
        "saturated": bool(summary.saturation(run)),
        "tokens_per_s": tokens / figures["duration_s"],
        "utilisation": figures["utilisation"],
        "fill": figures["fill"],
        **{
            f"{of}_{name}_s": figures[f"{of}_{name}_ms"] / 1e3
            for name in ("ttft", "tpot", "e2el")
            for of in ("median", "p95")
        },
    }


def fill_beside(
    workload: Workload,
    model: CostModel,
    costs: Sequence[BucketCost],
    rules: Rules,
    loads: Sequence[float],
    capacity_rps: float,
) -> pd.DataFrame:
    """How full continuous batching keeps its passes where buckets of these sizes would serve the
    same requests at the same loads: policy ("continuous"), load, saturated, fill and
    busy_over_shape_bound. Its shapes take what the buckets take: widths that double up to the
    widest bucket, chunks that double up to `LONG_CHUNK`, over the longest bucket's context."""
    buckets = [cost.bucket for cost in costs]
    blocks = max(blocks_of(bucket.context_length) for bucket in buckets)
    widest, longest = max(bucket.batch_size for bucket in buckets), blocks * BLOCK_TOKENS
    prefill = [(c, longest) for c in doublings(BLOCK_TOKENS, min(LONG_CHUNK, longest))]
    decode = [(rows, longest) for rows in doublings(1, widest)]
    shapes = model.of_shapes(ShapeSet.parse(prefill, decode, widest * blocks + 1))
    rows = []
    for load in loads:
        run = paged.simulate(at_rate(workload, load * capacity_rps), shapes, rules)
        rows.append(
            {
                "policy": "continuous",
                "load": load,
                "saturated": bool(summary.saturation(run)),
                "fill": summary.summary(run)["fill"],
                "busy_over_shape_bound": summary.busy_s(run) / bound_s(run),
            }
        )
    return pd.DataFrame(rows)


def verdict(frame: pd.DataFrame) -> str:
    """Which kind is better where, in words, of what `under_load` gives."""
    names = {"p95_ttft_s": "TTFT", "p95_tpot_s": "TPOT", "p95_e2el_s": "E2EL"}
    said = []
    for figure, table in _steady(frame):
        if figure in names:
            wins = table["continuous"] < table["static"]
            first = "continuous" if wins.iloc[0] else "static"
            said.append(f"{names[figure]}: {first} {_where(wins.eq(wins.iloc[0]))}")
    return "Better by P95: " + ", ".join(said) if said else "At no load is neither saturated"


def _where(holds: pd.Series) -> str:
    """The loads, the index, at which something holds, in words; at the lowest it does."""
    if holds.all():
        return "at every load"
    stretches = [part for _, part in holds.groupby(holds.ne(holds.shift()).cumsum())]
    if len(stretches) == 2:
        return f"below load {stretches[1].index[0]:g}"
    said = []
    for stretch in stretches[::2]:
        first, last = stretch.index[[0, -1]]
        if last == holds.index[-1]:
            said.append(f"from load {first:g} on")
        else:
            to = "" if first == last else f" to {last:g}"
            said.append(f"{'from' if to else 'at'} load {first:g}{to}")
    return f"{', '.join(said[:-1])} and {said[-1]}" if len(said) > 1 else said[0]


def laws(
    waiting: pd.DataFrame, frame: pd.DataFrame, graphs: int
) -> Iterator[tuple[str, bool, str]]:
    """What has to hold of `queued` and of `under_load`: its name, whether it does, and the
    evidence."""
    parts = waiting[list(PAID)].sum(axis=1)
    near = float((parts / waiting["busy_s"] - 1).abs().max())
    yield "useful + wastes = busy seconds", near < 1e-6, f"off by {near:.1e} at most"
    least = float((waiting["busy_s"] / waiting["bound_s"]).min())
    yield "no kind is below the bound of its shapes", least > 1 - 1e-9, f"nearest {least:.4f}"
    number = waiting["graphs"]
    yield "as many graphs as asked", bool(number.le(graphs).all()), f"{number.tolist()} of {graphs}"
    busiest = float(frame["utilisation"].max())
    yield "no engine is busier than there is time", busiest < 1 + 1e-9, f"{busiest:.3f}"


def turning(frame: pd.DataFrame) -> pd.DataFrame:
    """For each of FIGURES where the answer changes: figure, below (the kind that is better
    at the lowest load), from_load (the lowest from which the other is, at every higher one; nan:
    none), and ratio (continuous over static) at the lowest and at the highest load at which neither
    is saturated."""
    rows = []
    for figure, table in _steady(frame):
        wins = table["continuous"] < table["static"]
        since = wins[::-1].eq(wins.iloc[-1]).cumprod()[::-1].astype(bool)
        changes = wins.iloc[-1] != wins.iloc[0]
        ratio = table["continuous"] / table["static"]
        rows.append(
            {
                "figure": figure,
                "below": "continuous" if wins.iloc[0] else "static",
                "from_load": float(wins.index[since][0]) if changes else float("nan"),
                "ratio_at_lowest": float(ratio.iloc[0]),
                "ratio_at_highest": float(ratio.iloc[-1]),
            }
        )
    return pd.DataFrame(rows)


def _steady(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each of FIGURES, load by kind, where neither is saturated; nothing where one always is."""
    saturated = frame.groupby("load")["saturated"].any()
    for figure in FIGURES if not saturated.all() else ():
        yield figure, frame.pivot(index="load", columns="kind", values=figure)[~saturated]


def said_of_queued(waiting: pd.DataFrame) -> str:
    """What `queued` gives, in words."""
    static, continuous = (waiting.set_index("kind").loc[kind] for kind in ("static", "continuous"))
    more = continuous["tokens_per_s"] / static["tokens_per_s"]
    idle, left = (it["idle_rows"] / it["busy_s"] for it in (static, continuous))
    return (
        f"Continuous batching serves {more:.2f} times the tokens/s; rows without a token take "
        f"{idle:.0%} of the seconds under static batching, {left:.0%} under continuous"
    )


def said_of_chunks(chunks: pd.DataFrame) -> str:
    """The longest chunks of `over_chunks` beside the shortest, in words."""
    short, long = chunks.iloc[0], chunks.iloc[-1]
    ttft, tpot = (long[name] / short[name] for name in RATIOS)
    lengths = f"{long['chunk_tokens']:.0f} instead of {short['chunk_tokens']:.0f}"
    mark = summary.SATURATED if chunks["saturated"].any() else ""
    return f"chunks of up to {lengths} tokens: P95 of TTFT ×{ttft:.2f}, of TPOT ×{tpot:.2f}{mark}"


def over_chunks(
    workload: Workload, model: CostModel, chosen: Chosen, rate_rps: float
) -> pd.DataFrame:
    """The same engine with chunks up to each doubling of a block, at one rate: chunk_tokens,
    graphs, compile_s, and the figures of `under_load`. A longer chunk is one more graph, and passes
    that those who decode wait for."""
    shapes, rules = chosen.shapes.shapes, replace(chosen.rules, chunk_tokens=None)
    arriving, longest = at_rate(workload, rate_rps), shapes.max_model_len
    rows = []
    for chunk in doublings(BLOCK_TOKENS, max(shapes.max_chunk, min(LONG_CHUNK, longest))):
        prefill = tuple(PrefillShape(c, longest) for c in doublings(BLOCK_TOKENS, chunk))
        kind = continuous_kind(model.of_shapes(replace(shapes, prefill=prefill)), rules)
        graphs = {"graphs": kind.graphs, "compile_s": kind.compile_s}
        rows.append({"chunk_tokens": chunk, **graphs, **_of(kind.run(arriving))})
    return pd.DataFrame(rows)


def at_ends(workload: Workload, model: CostModel, chosen: Chosen, load: float) -> pd.DataFrame:
    """The answer of a modelled engine, nominal, at both ends of its parameters, and by each of the
    facts about it that contradict each other: end, tokens_gain (continuous over static, everybody
    queued), ratios of P95 of TTFT and of TPOT (continuous over static) at a load that static
    batching is given everywhere, and whether either is saturated there."""
    ends = zip(("pessimistic", "optimistic"), model.ends, strict=True)
    rows = []
    for end, source in [("nominal", model), *ends, *model.contested.items()]:
        kinds = chosen.priced(source).kinds
        full = queued(workload, kinds)
        at = under_load(workload, kinds, [load], float(full["requests_per_s"].iloc[0]))
        pairs = {"tokens_gain": full["tokens_per_s"]}
        pairs |= {name: at[figure] for figure, name in RATIOS.items()}
        ratios = {name: float(it.iloc[1]) / float(it.iloc[0]) for name, it in pairs.items()}
        rows.append({"end": end, **ratios, "saturated": bool(at["saturated"].any())})
    return pd.DataFrame(rows)


def said_at_ends(ends: pd.DataFrame) -> str:
    """What `at_ends` gives, in words: of the facts that are contested how far they reach."""
    gains, ratios = ends.set_index("end")["tokens_gain"], ends["ttft_ratio"]
    said = ", ".join(f"{gain:.2f} ({end})" for end, gain in gains[:3].items())
    said += f" times the tokens/s, TTFT ×{ratios.min():.2f} to ×{ratios.max():.2f}"
    said += summary.SATURATED if ends["saturated"].any() else ""
    if len(contested := gains[3:]):
        said += (
            f"; where public facts contradict each other {contested.min():.2f} to "
            f"{contested.max():.2f} times the tokens/s"
        )
    return said
