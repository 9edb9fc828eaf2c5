"""Scenario: every setting of a simulated run, said once with its default and its help text.

Command line, grids, panels and notebooks are made of it. Its methods import what they need when
they are called, so that `--help` need not wait for numpy.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from html import escape
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from spyre_bench.shape_set import DecodeShape, PrefillShape, words
from spyre_bench.shapes import BucketSet

if TYPE_CHECKING:
    from spyre_bench.cost.bucket_cost import BucketCost, CostModel
    from spyre_bench.cost.shape_cost import ShapeCosts
    from spyre_bench.cost.spread import Draw
    from spyre_bench.policy.continuous import Rules
    from spyre_bench.policy.static import Policy
    from spyre_bench.shape_set import ShapeSet
    from spyre_bench.simulate.continuous import Prefixes
    from spyre_bench.simulate.result import ContinuousRun, SimulatedRun
    from spyre_bench.workload.workload import Workload

WORKLOAD, TRACE_FILE, COSTS, SCHEDULING, ENGINE, CONTINUOUS = PARTS = (
    "Workload",
    "Trace file",
    "Costs",
    "Scheduling",
    "Engine",
    "Continuous batching",
)


def setting(part: str, help: str, default: Any = MISSING, **option: Any) -> Any:
    """A field with its help text and the part of the settings that it belongs to. `option` is what
    the command line adds: its `flag` if not the field's name, `metavar`, `min`, `max`, `required`,
    and `many` where it is repeated for each word of the text."""
    return field(default=default, metadata={"part": part, "help": help} | option)


@dataclass(frozen=True, repr=False)
class Scenario:
    """What is served (a workload), on what (buckets at their costs), and how (a policy): texts and
    numbers, as they are typed. None takes what the workload, or the package, comes with.

    Buckets are taken in any form of `BucketSet.parse`; without them there is a workload and a
    source of costs to choose them for. What else makes no sense is a ValueError of the method that
    needs it.
    """

    workload: str = setting(WORKLOAD, "azure_conv, burstgpt, ..., or a trace file")
    buckets: str = setting(
        ENGINE, "batch_size,prompt_length,new_tokens", "", flag="--bucket", many=True
    )
    requests: int | None = setting(
        WORKLOAD, "how many; default: 10,000, or the whole file", None, max=10**9
    )
    seed: int = setting(WORKLOAD, "of every random draw", 0, min=0)
    arrivals: str | None = setting(
        WORKLOAD, "all, constant:4, poisson:2.5, gamma:2.5,0.5, onoff:10,5,20", None
    )
    max_tokens: str | None = setting(
        WORKLOAD,
        "clients ask for: exact, recorded, fixed:256, multiple:2, quantile:0.99",
        None,
    )
    length_scale: float = setting(WORKLOAD, "multiplies all lengths", 1.0)
    rate_scale: float = setting(WORKLOAD, "divides the times between arrivals", 1.0)
    policy: str = setting(SCHEDULING, "best_fit, skip, fcfs, length_aware", "best_fit")
    max_wait_s: float = setting(ENGINE, "hold of a batch with free rows", 0.0)
    gather_s: float = setting(ENGINE, "hold for simultaneous arrivals", 0.0)
    max_age_s: float = setting(ENGINE, "age guard of length_aware", 60.0)
    replicas: int = setting(ENGINE, "identical engines", 1)
    router: str = setting(ENGINE, "round_robin or least_loaded", "round_robin")
    cost: str | None = setting(
        COSTS,
        "cost table, card:MODEL,tp=4,dtype=fp8,end=pessimistic, or what ships: buckets, shapes; "
        "default: the one of this kind of batching",
        None,
    )
    extrapolate: bool = setting(COSTS, "price buckets beyond what was measured, marked", False)
    columns: str | None = setting(
        TRACE_FILE,
        "arrival=created_at,prompt=n_in,output=n_out,max_tokens=limit; arrival=none: no times",
        None,
        metavar="PART=COLUMN,...",
    )
    time_unit: str | None = setting(TRACE_FILE, "s, ms, us or ns; default: as it says", None)
    separator: str | None = setting(
        TRACE_FILE, "of a CSV file: a character, or tab, semicolon, comma, pipe", None
    )
    from_s: float = setting(
        WORKLOAD, "leaves out what comes before, in seconds from the start", 0.0, flag="--from"
    )
    to_s: float = setting(
        WORKLOAD,
        "leaves out what comes from then on, in seconds from the start",
        math.inf,
        flag="--to",
    )
    warmup: bool = setting(ENGINE, "engines become ready after a cold warmup", False)
    client_overhead_ms: float = setting(ENGINE, "what a client waits beyond the engine", 0.0)
    goodput: str | None = setting(
        SCHEDULING,
        "the SLO: a limit in ms, such as ttft:2000; repeatable",
        None,
        metavar="METRIC:MS",
        many=True,
    )
    batching: str = setting(ENGINE, "static or continuous", "static")
    prefill_shapes: str = setting(
        CONTINUOUS, "chunk,context", "", flag="--prefill-shape", many=True
    )
    decode_shapes: str = setting(CONTINUOUS, "rows,context", "", flag="--decode-shape", many=True)
    blocks: int | None = setting(
        CONTINUOUS, "of the KV cache; default: what fills the largest decode shape", None, max=10**9
    )
    prefix_cache: str = setting(CONTINUOUS, "off, trace (its hash_ids), share:0.3", "off")
    chunk_tokens: int | None = setting(CONTINUOUS, "the most of a chunk; default: a shape's", None)
    decode_between: int = setting(CONTINUOUS, "decode passes between two chunks", 1)
    order: str = setting(CONTINUOUS, "arrival or shortest_prefill", "arrival")
    admission: str = setting(CONTINUOUS, "reserve or preempt", "reserve")
    layout: str = setting(CONTINUOUS, "ragged or rectangular", "ragged")
    over_limit: str = setting(CONTINUOUS, "pause or hold", "pause")
    max_batch_context_tokens: int | None = setting(
        CONTINUOUS, "limit on rows × context; default: the card's", None
    )
    min_free_blocks: int = setting(CONTINUOUS, "that admission leaves free", 0)

    def __post_init__(self) -> None:
        buckets = str(BucketSet.parse(self.buckets)) if self.buckets else ""
        object.__setattr__(self, "buckets", buckets)
        for name, of in (("prefill_shapes", PrefillShape), ("decode_shapes", DecodeShape)):
            if (text := getattr(self, name)).strip().startswith("@"):  # the file may change
                shapes = map(of.parse, words(text, name))
                object.__setattr__(self, name, " ".join(map(str, shapes)))

    @classmethod
    def of(cls, parameters: object, **others: Any) -> Scenario:
        """With the settings that a notebook's parameters have under the same names, and others."""
        named = {it.name for it in fields(cls) if hasattr(parameters, it.name)}
        return cls(**{name: getattr(parameters, name) for name in named} | others)

    def read_workload(self) -> Workload:
        """The workload as it is drawn or read, before it is scaled."""
        import numpy as np

        from spyre_bench.workload.source import load_workload
        from spyre_bench.workload.trace_formats import Reading

        return load_workload(
            self.workload,
            requests=self.requests,
            rng=np.random.default_rng(self.seed),
            arrivals=self.arrivals,
            max_tokens=self.max_tokens,
            reading=Reading.parse(self.columns, self.time_unit, self.separator),
            from_s=self.from_s,
            to_s=self.to_s,
        )

    def load_workload(self) -> Workload:
        """The requests that are served."""
        return self.scaled(self.read_workload())

    def scaled(self, workload: Workload) -> Workload:
        return workload.scaled(lengths=self.length_scale, rate=self.rate_scale)

    def load_cost(self) -> CostModel:
        """The source of the costs."""
        from spyre_bench.cost.source import load_cost

        return load_cost(self.cost_source, extrapolate=self.extrapolate)

    @property
    def cost_source(self) -> str:
        """What `cost` says, or the name of the table that ships of this kind of batching."""
        from spyre_bench.cost.source import BUCKETS, SHAPES

        return self.cost or (SHAPES if self.is_continuous else BUCKETS)

    @property
    def is_continuous(self) -> bool:
        """Raises ValueError for a kind of batching that there is not."""
        if self.batching not in ("static", "continuous"):
            raise ValueError(f"batching {self.batching!r} is not known: use static or continuous")
        return self.batching == "continuous"

    def shapes(self) -> ShapeSet:
        """The shapes of continuous batching."""
        from spyre_bench.shape_set import ShapeSet

        return ShapeSet.parse(self.prefill_shapes, self.decode_shapes, self.blocks)

    def shape_costs(self, source: CostModel | None = None) -> ShapeCosts:
        """What the shapes of continuous batching cost, by its own source or another one."""
        source = source or self.load_cost()
        if self.warmup:
            source.require_known("compile_s", "a warmup (--warmup)")
        return source.of_shapes(self.shapes())

    def step_rules(self, source: CostModel | None = None) -> Rules:
        """How requests join and leave under continuous batching; the limit on rows × context is the
        source's where none is set."""
        from spyre_bench.policy.continuous import Rules

        limit = self.max_batch_context_tokens
        if limit is None and source is not None:
            limit = source.batch_tokens
        return Rules(
            chunk_tokens=self.chunk_tokens,
            decode_between=self.decode_between,
            order=self.order,
            max_age_s=self.max_age_s,
            admission=self.admission,
            layout=self.layout,
            over_limit=self.over_limit,
            max_batch_context_tokens=limit,
            min_free_blocks=self.min_free_blocks,
        )

    def prefixes(self, workload: Workload) -> Prefixes | None:
        """Which of these requests' prompts begin alike; None without a prefix cache."""
        from spyre_bench.simulate.prefixes import TRACE, prefixes_of

        if self.prefix_cache == TRACE and self.length_scale != 1:
            raise ValueError(
                f"length_scale {self.length_scale} and prefix_cache trace: hash_ids stand for the "
                f"trace's own lengths; use one of them"
            )
        return prefixes_of(workload, self.prefix_cache)

    def costs(self, source: CostModel | None = None) -> tuple[BucketCost, ...]:
        """What the buckets cost, by its own source or another one."""
        if not self.buckets:
            raise ValueError(
                "no bucket given: write, for example, --bucket 4,64,32, or --batching continuous "
                "with --prefill-shape 256,2048 --decode-shape 8,2048"
            )
        from spyre_bench.cost.bucket_cost import price

        source = source or self.load_cost()
        if self.warmup:
            source.require_known("compile_s", "a warmup (--warmup)")
        return price(BucketSet.parse(self.buckets), source)

    def rules(self) -> Policy:
        """How batches are formed."""
        from spyre_bench.policy.static import Policy

        return Policy(self.policy, self.max_wait_s, self.gather_s, self.max_age_s)

    def limits_ms(self) -> dict[str, float]:
        """The SLO: limits on latency in milliseconds, by metric."""
        limits = {}
        for text in [] if self.goodput is None else self.goodput.split(" "):
            name, _, value = text.partition(":")
            if name in limits:
                raise ValueError(f"goodput has two limits on {name}: give one")
            try:
                limits[name] = float(value)
            except ValueError as error:
                raise ValueError(
                    f"goodput limit {text!r} is not a metric and milliseconds: write, for example, "
                    f"ttft:2000"
                ) from error
        return limits

    def run(
        self,
        workload: Workload | None = None,
        costs: Sequence[BucketCost] | None = None,
        draw: Draw | None = None,
    ) -> SimulatedRun:
        """Simulates it, by its kind of batching; on another workload or, of static batching, other
        buckets where these are given. With a `draw` passes take what it says, and the policy still
        decides by the costs."""
        from spyre_bench.cost.spread import steady
        from spyre_bench.simulate import static

        if self.is_continuous:
            if costs is not None:
                raise ValueError("batching is continuous: its costs are of shapes, not of buckets")
            return self.run_continuous(workload, draw=draw)
        rules = self.rules()
        costs = self.costs() if costs is None else costs
        return static.simulate(
            self.load_workload() if workload is None else workload,
            draw.scaled(costs) if draw else costs,
            rules,
            replicas=self.replicas,
            router=self.router,
            ready_s=sum(cost.warmup_s for cost in costs) if self.warmup else 0.0,
            client_overhead_s=self.client_overhead_ms / 1e3,
            estimated=costs,
            pace=draw.pace if draw else steady,
        )

    def run_continuous(
        self,
        workload: Workload | None = None,
        source: CostModel | None = None,
        draw: Draw | None = None,
    ) -> ContinuousRun:
        """Simulates continuous batching; on another workload or at other costs where these are
        given. With a `draw` passes take what it says, and the policy still decides by the costs."""
        from spyre_bench.simulate import continuous

        source = source or self.load_cost()
        costs = self.shape_costs(source)
        workload = self.load_workload() if workload is None else workload
        return continuous.simulate(
            workload,
            costs.scaled(draw.factors[:, 0].tolist()) if draw else costs,
            self.step_rules(source),
            estimated=costs,
            prefixes=self.prefixes(workload),
            replicas=self.replicas,
            router=self.router,
            ready_s=costs.warmup_s if self.warmup else 0.0,
            client_overhead_s=self.client_overhead_ms / 1e3,
        )

    def require_used(self) -> None:
        """Raises ValueError for a setting that only the other kind of batching has."""
        require_used(self._chosen(), [self])

    def _chosen(self) -> dict[str, Any]:
        """The settings that are not at their default."""
        named = {it.name: (getattr(self, it.name), it.default) for it in fields(self)}
        return {name: value for name, (value, default) in named.items() if value != default}

    def __repr__(self) -> str:
        return f"Scenario({', '.join(f'{name}={v!r}' for name, v in self._chosen().items())})"

    def _repr_html_(self) -> str:
        helps = {it.name: it.metadata["help"] for it in fields(self)}
        rows = (
            f"<tr><th>{name}</th><td>{escape(str(value))}</td><td>{escape(helps[name])}</td></tr>"
            for name, value in self._chosen().items()
        )
        return f"<table>{''.join(rows)}</table>"


def require_used(names: Collection[str], scenarios: Iterable[Scenario]) -> None:
    """Raises ValueError for a setting that only a kind of batching has which none of the scenarios
    is of."""
    batchings = {"continuous" if it.is_continuous else "static" for it in scenarios}
    for it in fields(Scenario):
        only = "continuous" if it.metadata["part"] == CONTINUOUS else ""
        if it.name in ("buckets", "policy", "max_wait_s", "gather_s"):
            only = "static"
        if it.name in names and only and only not in batchings:
            raise ValueError(
                f"{it.name} is a setting of {only} batching and batching is {', '.join(batchings)}"
                f": leave it out, or say batching {only}"
            )


KINDS: dict[str, type] = {
    name: (get_args(kind) or (kind,))[0] for name, kind in get_type_hints(Scenario).items()
}
"""What each setting is: a str, int, float or bool."""
