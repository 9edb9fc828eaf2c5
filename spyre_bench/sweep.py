"""A grid of simulations in parallel, into one tidy CSV: interrupted ones go on where they stopped.

A grid is a list of values for each setting; every combination is a point. Points run in chunks
through joblib, on this machine's cores or on a cluster that joblib knows (Dask, Ray); the rows of a
chunk are appended as it ends.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from tqdm import tqdm

from spyre_bench import metrics
from spyre_bench.batching import Policy
from spyre_bench.cost import MeasuredCost, load_cost, price
from spyre_bench.shapes import BucketSet
from spyre_bench.simulate import simulate
from spyre_bench.workload import Workload, load_workload

BACKENDS = ("loky", "dask", "ray")
CHUNK = 8  # points a task: large enough to drown the cost of sending it


@dataclass(frozen=True)
class Point:
    """The settings of one simulation."""

    workload: str
    buckets: str
    requests: int = 10_000
    seed: int = 0
    arrivals: str = ""  # as the workload has them
    max_tokens: str = ""  # as the workload has them
    length_scale: float = 1.0
    rate_scale: float = 1.0
    policy: str = "best_fit"
    max_wait_s: float = 0.0
    gather_s: float = 0.0
    max_age_s: float = 60.0
    replicas: int = 1
    router: str = "round_robin"
    cost: str = ""  # the shipped table
    extrapolate: bool = False


SETTINGS = tuple(field.name for field in fields(Point))


def read_grid(path: Path) -> list[Point]:
    """The points of a YAML file that has a value, or a list of them, for settings of `Point`."""
    import yaml

    try:
        grid = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(grid, Mapping):
        raise ValueError(f"{path}: write a line for each setting, such as `policy: [skip, fcfs]`")
    try:
        return points(grid)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def points(grid: Mapping[str, Any]) -> list[Point]:
    """Every combination of the values, the last setting changing fastest. Raises ValueError for an
    unknown or a missing setting and for a value of the wrong kind."""
    if unknown := sorted(set(grid) - set(SETTINGS)):
        raise ValueError(f"setting {unknown[0]!r} is not known: there are {', '.join(SETTINGS)}")
    if missing := [name for name in ("workload", "buckets") if name not in grid]:
        raise ValueError(f"the grid says nothing of {missing[0]}: give one value or more")
    lists = {
        name: [_typed(name, value) for value in (some if isinstance(some, list) else [some])]
        for name, some in grid.items()
    }
    found = [
        Point(**dict(zip(lists, values, strict=True)))
        for values in itertools.product(*lists.values())
    ]
    if not found:
        raise ValueError("a setting has an empty list of values: the grid has no point")
    return found


def _typed(name: str, value: Any) -> Any:
    kind = {"str": str, "int": int, "float": float, "bool": bool}[
        next(field.type for field in fields(Point) if field.name == name)
    ]
    if name == "buckets":
        return str(BucketSet.parse(value))
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"setting {name}: {value!r} is not of type {kind.__name__}")
    return value


def run_sweep(
    some: Sequence[Point],
    out: Path,
    *,
    jobs: int = -1,
    backend: str = "loky",
    scheduler: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Simulates the points that `out` does not hold yet and returns all of its rows of `some`, in
    the order of `some`, which is then also the order of the file.

    A point that cannot run (a bucket beyond the cost table, say) has its error in the column
    `error` and no figures. Raises ValueError for an unknown backend, a missing library, or a file
    that is not of a sweep.
    """
    done = _read(out) if out.exists() else {}
    todo = [point for point in dict.fromkeys(some) if _key(asdict(point)) not in done]
    # Neighbours in the grid often share workload and table, which a worker then loads once.
    chunks = [todo[first : first + CHUNK] for first in range(0, len(todo), CHUNK)]
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        _parallel(backend, scheduler, jobs) as parallel,
        tqdm(total=len(todo), desc="sweep", unit="point", disable=not progress) as bar,
    ):
        for rows in parallel(joblib.delayed(run_chunk)(chunk) for chunk in chunks):
            _append(out, rows)
            done |= {_key(row): row for row in rows}
            bar.update(len(rows))
    frame = pd.DataFrame([done[_key(asdict(point))] for point in dict.fromkeys(some)])
    rest = [row for key, row in done.items() if key not in {_key(asdict(p)) for p in some}]
    _replace(out, pd.concat([frame, pd.DataFrame(rest, columns=frame.columns)]) if rest else frame)
    return frame


def run_chunk(chunk: Sequence[Point]) -> list[dict[str, Any]]:
    """One row a point: its settings and its figures."""
    return [asdict(point) | _figures(point) for point in chunk]


def _figures(point: Point) -> dict[str, Any]:
    try:
        costs = price(BucketSet.parse(point.buckets), _cost(point.cost, point.extrapolate))
        policy = Policy(point.policy, point.max_wait_s, point.gather_s, point.max_age_s)
        workload = _workload(
            point.workload, point.requests, point.seed, point.arrivals, point.max_tokens,
            point.length_scale, point.rate_scale,
        )  # fmt: skip
        trace = simulate(workload, costs, policy, replicas=point.replicas, router=point.router)
    except (ValueError, OSError) as error:
        return dict.fromkeys(FIGURES) | {"error": str(error)}
    seconds = metrics.duration_s(trace)
    latency = metrics.latencies(trace, (95, 99))
    ledger = metrics.ledger(trace)
    served = int(trace.served.sum())
    return {
        "served": served,
        "rejected": len(workload) - served,
        "batches": len(trace.batch_rows),
        "duration_s": seconds,
        "busy_s": metrics.busy_s(trace),
        "throughput_rps": served / seconds if seconds else math.nan,
        "utilisation": metrics.utilisation(trace),
        "busy_over_shape_bound": metrics.distance_to_shape_bound(trace),
        "fill": ledger.fill,
        **{f"{name}_tokens": tokens for name, tokens in asdict(ledger).items()},
        **{
            f"{of}_{name}_ms": value
            for name in ("queue", "ttft", "tpot", "e2el")
            for of, value in {
                "mean": latency[name].mean_ms,
                "median": latency[name].median_ms,
                **{f"p{p}": value for p, value in latency[name].percentiles_ms.items()},
            }.items()
        },
        "compile_s": sum(cost.compile_s for cost in costs),
        "extrapolated": sum(cost.extrapolated for cost in costs),
        "saturated": bool(metrics.saturation(trace)),
        "error": "",
    }


FIGURES = (
    "served", "rejected", "batches", "duration_s", "busy_s", "throughput_rps", "utilisation",
    "busy_over_shape_bound", "fill", *(f"{name}_tokens" for name in metrics.LEDGER),
    *(f"{of}_{name}_ms" for name in ("queue", "ttft", "tpot", "e2el")
      for of in ("mean", "median", "p95", "p99")),
    "compile_s", "extrapolated", "saturated", "error",
)  # fmt: skip
COLUMNS = (*SETTINGS, *FIGURES)


# A process has many points of the same workload and table.
@lru_cache(maxsize=8)
def _cost(path: str, extrapolate: bool) -> MeasuredCost:
    return load_cost(Path(path) if path else None, extrapolate=extrapolate)


@lru_cache(maxsize=8)
def _workload(
    name: str, requests: int, seed: int, arrivals: str, max_tokens: str, lengths: float, rate: float
) -> Workload:
    some = load_workload(
        name, requests=requests, rng=np.random.default_rng(seed), arrivals=arrivals or None,
        max_tokens=max_tokens or None,
    )  # fmt: skip
    return some.scaled(lengths=lengths, rate=rate)


@contextmanager
def _parallel(backend: str, scheduler: str | None, jobs: int):
    """joblib on the chosen backend, giving results as they come."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not known: use one of {', '.join(BACKENDS)}")
    with ExitStack() as stack:
        try:
            if backend == "dask":
                from distributed import Client

                stack.enter_context(Client(scheduler) if scheduler else Client(
                    n_workers=joblib.effective_n_jobs(jobs), threads_per_worker=1,
                    dashboard_address=None,
                ))  # fmt: skip
            elif backend == "ray":
                import ray
                from ray.util.joblib import register_ray

                ray.init(address=scheduler)
                stack.callback(ray.shutdown)
                register_ray()
        except ImportError as error:
            raise ValueError(f"{error}: install {error.name} to sweep on {backend}") from error
        stack.enter_context(joblib.parallel_config(backend, n_jobs=jobs))
        # Dask and Ray give their results in order only.
        unordered = "generator_unordered" if backend == "loky" else "list"
        yield joblib.Parallel(return_as=unordered)


def _key(row: Mapping[str, Any]) -> str:
    """What makes two rows the same point."""
    return json.dumps([row[name] for name in SETTINGS])


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    header = not path.exists()
    with path.open("a") as file:
        pd.DataFrame(rows, columns=COLUMNS).to_csv(file, index=False, header=header)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, frame: pd.DataFrame) -> None:
    partial = path.with_name(f".{path.name}.partial")
    frame.to_csv(partial, index=False)
    os.replace(partial, path)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of an earlier sweep by their point; a last line that was cut off is left out."""
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if len(whole) < len(text):
        path.write_text(whole)  # what follows must begin a line of its own
    if not whole:
        path.unlink()
        return {}
    frame = pd.read_csv(path, keep_default_na=False, na_values={n: [""] for n in FIGURES[:-1]})
    if tuple(frame.columns) != COLUMNS:
        raise ValueError(f"{path} is not of a sweep: name another file, or move it away")
    for field in fields(Point):
        kind = {"str": str, "int": int, "float": float, "bool": bool}[field.type]
        frame[field.name] = frame[field.name].astype(kind)
    rows = frame.to_dict("records")
    return {_key(row): row for row in rows}
