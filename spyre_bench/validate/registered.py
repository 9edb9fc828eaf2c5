"""A prediction on disk before the first request is sent, so that nobody can choose it afterwards.

The file holds what was predicted (points and P5 to P95), for which requests, from which constants,
by which commit and when; its name ends with the start of its own digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spyre_bench.files import commit, read_json, replace_text
from spyre_bench.metrics.intervals import numbers
from spyre_bench.validate.constants import JUDGED, Constants
from spyre_bench.workload.workload import Workload


@dataclass(frozen=True)
class Prediction:
    """What was said before a run."""

    path: Path
    digest: str  # sha256 of the file
    registered_at: str  # ISO 8601, UTC
    points: dict[str, float]  # by figure
    intervals: dict[str, tuple[float, float]]  # P5 and P95

    @property
    def name(self) -> str:
        return self.path.name


def register(
    name: str, constants: Constants, workload: Workload, directory: Path, *, seed: int = 0
) -> Prediction:
    """Predicts the run from these constants and writes it down. Raises ValueError for constants
    without a spread."""
    points = numbers(constants.simulate(workload))
    intervals = constants.intervals(workload, seed)
    said = {
        "requests": said_of_requests(workload),
        "constants": said_of_constants(constants),
        "intervals": {key: value for key, value in intervals.said().items() if key != "p5_to_p95"},
    }
    predicted = {figure: (points[figure], intervals[figure]) for figure in JUDGED}
    return write_down(name, said, predicted, directory)


def write_down(
    name: str,
    said: Mapping[str, Any],
    predicted: Mapping[str, tuple[float, tuple[float, float]]],
    directory: Path,
) -> Prediction:
    """Registers what is predicted, a point and P5 to P95 by figure, and what it rests on."""
    content = {
        "check": name,
        "registered_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        **commit(),
        **said,
        "predicted": {
            figure: {"point": point, "p5_to_p95": interval}
            for figure, (point, interval) in predicted.items()
        },
    }
    text = json.dumps(content, indent=1) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = directory / f"{name.replace(' ', '-')}-prediction-{digest[:12]}.json"
    replace_text(path, text)
    return read_prediction(path)


def read_prediction(path: Path) -> Prediction:
    """A registered prediction. Raises ValueError where the file is not what its name says."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not path.stem.endswith(f"-{digest[:12]}"):
        raise ValueError(
            f"{path}: its content has the digest {digest[:12]}, not the one in its name: it was "
            f"changed after it was registered"
        )
    content = read_json(path)
    predicted = content["predicted"]
    return Prediction(
        path,
        digest,
        content["registered_at"],
        {figure: said["point"] for figure, said in predicted.items()},
        {figure: tuple(said["p5_to_p95"]) for figure, said in predicted.items()},
    )


def said_of_requests(workload: Workload) -> dict[str, Any]:
    """Which they are, for a file."""
    columns = (workload.arrival_s, workload.prompt_tokens, workload.output_tokens)
    digest = hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest()
    return {"name": workload.name, "count": len(workload), "sha256": digest}


def said_of_constants(constants: Constants) -> dict[str, Any]:
    """All that a prediction rests on, for a file."""
    spread = constants.spread
    assert spread is not None, "intervals were drawn from it"
    return {
        **constants.said(),
        "overhead_deviation_s": constants.overhead_deviation_s,
        "own_deviation": spread.above.tolist(),
        "batch_deviation": list(spread.batch),
        "drift": spread.pace,
        "drift_freedom": spread.freedom,
    }
