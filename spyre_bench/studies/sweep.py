"""A grid of simulations in parallel, into one tidy CSV: interrupted ones go on where they stopped.

A grid is a list of values for each setting; every combination is a point. Points run in chunks
through joblib, on this machine's cores or on a cluster that joblib knows (Dask, Ray); the rows of a
chunk are appended as it ends.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
from tqdm import tqdm

from spyre_bench import files
from spyre_bench.cost.bucket_cost import CostModel
from spyre_bench.cost.source import BUCKETS, load_cost
from spyre_bench.errors import sentence
from spyre_bench.metrics import summary, waste
from spyre_bench.shapes import BucketSet
from spyre_bench.simulate.result import SimulatedRun
from spyre_bench.simulate.scenario import KINDS, TRACE_FILE, WORKLOAD, Scenario, require_used
from spyre_bench.workload.workload import Workload

BACKENDS = ("loky", "dask", "ray")
POINTS_PER_TASK = 8  # enough to drown the cost of sending them


FIELDS = {field.name: field for field in fields(Scenario)}
SETTINGS = tuple(name for name in FIELDS if name != "goodput")  # no figure hangs on that
OF_WORKLOAD = [name for name in SETTINGS if FIELDS[name].metadata["part"] in (WORKLOAD, TRACE_FILE)]


def read_points(path: Path) -> list[Scenario]:
    """The points of a YAML file that has a value, or a list of them, for settings of `Scenario`."""
    grid = files.read_yaml(path)
    if not isinstance(grid, Mapping):
        raise ValueError(f"{path}: write a line for each setting, such as `policy: [skip, fcfs]`")
    try:
        return points(grid)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def points(grid: Mapping[str, Any]) -> list[Scenario]:
    """Every combination of the values, the last setting changing fastest. Where a grid has both
    kinds of batching and no costs, the table of buckets that ships prices both: that of shapes is
    of another machine. Raises ValueError for an unknown or a missing setting, for one that none of
    the grid's kinds of batching has, and for a value of the wrong kind."""
    if unknown := sorted(set(grid) - set(SETTINGS), key=str):
        raise ValueError(f"setting {unknown[0]!r} is not known: there are {', '.join(SETTINGS)}")
    shapes_only = grid.get("batching") in ("continuous", ["continuous"])
    needed = ("workload",) if shapes_only else ("workload", "buckets")
    if missing := [name for name in needed if name not in grid]:
        raise ValueError(f"the grid says nothing of {missing[0]}: give one value or more")
    if isinstance(grid.get("batching"), list) and len(set(grid["batching"])) > 1:
        grid = {"cost": BUCKETS} | dict(grid)
    lists = {
        name: [_typed(name, value) for value in (given if isinstance(given, list) else [given])]
        for name, given in grid.items()
    }
    scenarios = [
        Scenario(**dict(zip(lists, values, strict=True)))
        for values in itertools.product(*lists.values())
    ]
    if not scenarios:
        raise ValueError("a setting has an empty list of values: the grid has no point")
    require_used(grid, scenarios)
    return scenarios


def varying(scenarios: Sequence[Scenario]) -> list[str]:
    """The settings of which these points have several values."""
    return [name for name in SETTINGS if len({getattr(it, name) for it in scenarios}) > 1]


def _typed(name: str, value: Any) -> Any:
    kind, known = KINDS[name], FIELDS[name]
    if name == "buckets":
        if not isinstance(value, str | list):
            raise ValueError(
                f"setting buckets: {value!r} is not a set of buckets: write, for example, "
                f'"4,64,32 2,256,64"'
            )
        return str(BucketSet.parse(value))
    if kind is float and type(value) is int and abs(value) < sys.float_info.max:
        value = float(value)
    if type(value) is not kind:
        shown = repr(value) if len(repr(value)) < 80 else f"{repr(value)[:80]}…"
        raise ValueError(f"setting {name}: {shown} is not of type {kind.__name__}")
    least, most = (known.metadata.get(end) for end in ("min", "max"))
    if least is not None and value < least:
        raise ValueError(f"setting {name}: {value} is below {least}: use {least} or more")
    if most is not None and value > most:
        raise ValueError(f"setting {name}: {value} is above {most:,}")
    if kind is int and abs(value) >= 2**63:
        raise ValueError(
            f"setting {name}: {str(value)[:40]}… is beyond 64 bits, which no table holds"
        )
    if kind is str and "\x00" in value:
        raise ValueError(f"setting {name}: {value!r} holds a null byte, which no name does")
    return None if known.default is None and not value else value


def run_sweep(
    scenarios: Sequence[Scenario],
    out: Path,
    *,
    jobs: int = -1,
    backend: str = "loky",
    scheduler: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Simulates the points that `out` does not hold yet and returns the rows of `scenarios`,
    in their order; the file then has them in this order, and its other rows behind them.

    A point that cannot run (a bucket beyond the cost table, say) has its error in the column
    `error` and no figures, and is tried again next time. A row stands while its `basis` does, the
    digest of its trace, its cost table and this package. Raises ValueError for an unknown backend,
    a missing library, a file that is not of a sweep, or one that another sweep is writing.
    """
    with files.in_use(out):
        done = _read(out) if out.exists() else {}
        wanted = {_key(_settings(point)): point for point in scenarios}
        todo = [point for key, point in wanted.items() if not _stands(done.get(key), point)]
        # Neighbours in the grid often share workload and table, which a worker then loads once.
        chunks = [
            todo[first : first + POINTS_PER_TASK] for first in range(0, len(todo), POINTS_PER_TASK)
        ]
        with (
            _parallel(backend, scheduler, jobs) as parallel,
            tqdm(total=len(todo), desc="sweep", unit="point", disable=not progress) as bar,
        ):
            for rows in parallel(joblib.delayed(run_chunk)(chunk) for chunk in chunks):
                _append(out, rows)
                done |= {_key(row): row for row in rows}
                bar.update(len(rows))
        rows = [done[key] for key in wanted]
        _replace(out, _table(rows + [row for key, row in done.items() if key not in wanted]))
        return _table(rows)


def run_chunk(chunk: Sequence[Scenario]) -> list[dict[str, Any]]:
    """One row per point: its settings, its basis and its figures, or its error, whatever it is."""
    rows = []
    for point in chunk:
        basis = _basis(point)
        try:
            figures = _simulate(point, basis)
        except Exception as error:
            figures = dict.fromkeys(FIGURES) | {"error": sentence(error)}
        rows.append(_settings(point) | {"basis": basis} | figures)
    return rows


def _settings(point: Scenario) -> dict[str, Any]:
    """As the file has them: "" or 0 where nothing is set."""
    values = {name: getattr(point, name) for name in SETTINGS}
    return {name: KINDS[name]() if value is None else value for name, value in values.items()}


def _simulate(point: Scenario, basis: str) -> dict[str, Any]:
    source = _cost(point.cost_source, point.extrapolate, basis)
    asked = Scenario(**{name: getattr(point, name) for name in OF_WORKLOAD})
    workload = _workload(asked, basis)
    run: SimulatedRun
    if point.is_continuous:
        run = point.run_continuous(workload, source)
    else:
        run = point.run(workload, point.costs(source))
    return {
        **dict.fromkeys(FIGURES),
        **summary.summary(run),
        "compile_s": run.compile_s,
        "extrapolated": len(run.extrapolated),
        "saturated": bool(summary.saturation(run)),
        "error": "",
    }


# of both kinds of batching; a part that the other kind does not have is empty
LEDGERS = (*waste.LEDGER, *(name for name in waste.STEP_LEDGER if name != "useful"), "hit")
FIGURES = (
    "served",
    "rejected",
    "batches",
    "duration_s",
    "busy_s",
    "throughput_rps",
    "utilisation",
    "busy_over_shape_bound",
    "fill",
    *(f"{name}_tokens" for name in LEDGERS),
    *(
        f"{of}_{name}_ms"
        for name in ("queue", "ttft", "tpot", "e2el")
        for of in ("mean", "median", "p95", "p99")
    ),
    *(f"paid_{name}" for name in waste.PAID_LEDGER),
    "compile_s",
    "extrapolated",
    "saturated",
    "error",
)
COLUMNS = (*SETTINGS, "basis", *FIGURES)
COUNTS = (
    "served",
    "rejected",
    "batches",
    *(f"{name}_tokens" for name in LEDGERS),
    "extrapolated",
)
# A whole number, or nothing where the point did not run.
DTYPES = (
    {name: KINDS[name] for name in SETTINGS}
    | dict.fromkeys(FIGURES, float)
    | dict.fromkeys(COUNTS, "Int64")
    | {"saturated": "boolean", "error": str, "basis": str}
)


def _stands(row: Mapping[str, Any] | None, point: Scenario) -> bool:
    """Whether the row of an earlier sweep is still what simulating the point would give."""
    return row is not None and not row["error"] and row["basis"] == _basis(point)


def _basis(point: Scenario) -> str:
    """The digest of what a point's figures depend on beside its settings."""
    return files.digest(_code(), _content(point.workload), _content(point.cost or ""))


_code = cache(files.code)


def _content(name: str) -> str | None:
    """Read again only where the file is another one: many points share it."""
    try:
        status = os.stat(name)
    except (OSError, ValueError):
        return None
    return _content_at(name, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _content_at(name: str, *_: int) -> str | None:
    return files.content(name)


# A process has many points of the same workload and table; under another basis they are read anew.
@lru_cache(maxsize=8)
def _cost(text: str, extrapolate: bool, basis: str) -> CostModel:
    return load_cost(text, extrapolate=extrapolate)


@lru_cache(maxsize=8)
def _workload(asked: Scenario, basis: str) -> Workload:
    return asked.load_workload()


@contextmanager
def _parallel(backend: str, scheduler: str | None, jobs: int):
    """joblib on the chosen backend: takes tasks and gives their results as they come."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not known: use one of {', '.join(BACKENDS)}")
    if jobs == 0:
        raise ValueError("jobs 0 are too few: use 1 or more, or -1 for one per core")
    if scheduler and backend == "loky":
        raise ValueError(
            f"scheduler {scheduler!r} is of no use to loky, which stays on this machine: choose "
            f"backend dask or ray"
        )
    with ExitStack() as stack:
        try:
            if backend == "dask":
                from distributed import Client

                stack.enter_context(
                    Client(scheduler)
                    if scheduler
                    else Client(
                        n_workers=joblib.effective_n_jobs(jobs),
                        threads_per_worker=1,
                        dashboard_address=None,
                    )
                )
            elif backend == "ray":
                import ray
                from ray.util.joblib import register_ray

                ray.init(address=scheduler)
                stack.callback(ray.shutdown)
                register_ray()
        except ImportError as error:
            hint = "pip install 'spyre-bench[cluster]'" if backend == "dask" else "pip install ray"
            raise ValueError(f"{error}: {hint}") from error
        stack.enter_context(joblib.parallel_config(backend, n_jobs=jobs))
        if backend == "ray":
            yield partial(_in_waves, joblib.Parallel(), 4 * joblib.effective_n_jobs(jobs))
        else:
            yield joblib.Parallel(return_as="generator_unordered")


def _in_waves(parallel: Callable, tasks_at_once: int, tasks: Iterable) -> Iterator:
    """Results as they come of a backend that gives those of all its tasks at the end."""
    tasks = iter(tasks)
    while wave := list(itertools.islice(tasks, tasks_at_once)):
        yield from parallel(wave)


def _key(row: Mapping[str, Any]) -> str:
    """What makes two rows the same point."""
    return json.dumps([row[name] for name in SETTINGS])


def _table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a frame whose types do not hang on which of them failed."""
    return pd.DataFrame(rows, columns=COLUMNS).astype(DTYPES)


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        _table(rows).to_csv(file, index=False, header=file.tell() == 0)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, frame: pd.DataFrame) -> None:
    files.replace_text(path, frame.to_csv(index=False))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of an earlier sweep by their point; a last line that was cut off is taken off."""
    text, header = path.read_bytes(), f"{','.join(COLUMNS)}\n".encode()
    earlier = _of_an_earlier_version(text)
    if not (earlier or text.startswith(header) or header.startswith(text)):
        raise ValueError(f"{path} is not of a sweep: name another file, or move it away")
    whole = text.rfind(b"\n") + 1
    os.truncate(path, whole)  # what follows must begin a line of its own
    if not whole:
        return {}
    empty_is_missing = {name: [""] for name in FIGURES if name != "error"}
    try:
        frame = pd.read_csv(path, dtype=DTYPES, keep_default_na=False, na_values=empty_is_missing)
    except ValueError as error:
        raise ValueError(f"{path} is not of a sweep: {error}") from error
    if earlier:  # nobody knows what its rows depended on: they are run again where asked for
        defaults = _settings(Scenario("")) | {"basis": ""}
        missing = {name: defaults[name] for name in COLUMNS if name not in frame}
        frame = frame.assign(**missing)[list(COLUMNS)]
        _replace(path, frame)
    return {_key(row): row for row in frame.to_dict("records")}


def _of_an_earlier_version(text: bytes) -> bool:
    """Whether the first line has all figures and fewer settings than there are now."""
    names = text.partition(b"\n")[0].decode(errors="replace").split(",")
    needed = {"workload", "buckets", *FIGURES}
    return b"\n" in text and needed <= set(names) < set(COLUMNS) and len(set(names)) == len(names)
