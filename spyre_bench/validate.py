"""A measured run beside a simulated one of the same requests: how far the simulator is off.

Both are results in the form of `vllm bench serve`; with its `--save-detailed` arrays they are
compared request by request too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ARRAYS = ("input_lens", "output_lens", "ttfts", "latencies")
LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "e2el": "E2EL"}
SHARES = (50, 90, 99)


def read_result(path: Path) -> dict[str, Any]:
    """A result file; raises ValueError with its name where it is none."""
    try:
        result = json.loads(Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(result, dict) or "request_throughput" not in result:
        raise ValueError(
            f"{path}: not a result of `vllm bench serve --save-result` or `spyre-bench simulate`: "
            f"it has no request_throughput"
        )
    return result


def by_request(measured: Mapping[str, Any], simulated: Mapping[str, Any]) -> pd.DataFrame:
    """One row a request: prompt_tokens, output_tokens, and for each of ttft, tpot (nan for one
    token) and e2el the seconds `measured_` and `simulated_`, and `error_`, simulated over measured
    less 1.

    Raises ValueError where a result lacks the arrays, or where the two are not of the same
    requests.
    """
    for name, result in (("measured", measured), ("simulated", simulated)):
        if missing := [array for array in ARRAYS if array not in result]:
            raise ValueError(
                f"the {name} result has no {missing[0]}: save it with --save-detailed "
                f"(vllm bench serve) or --detailed (spyre-bench simulate)"
            )
    _require_same_requests(measured, simulated)
    frame = pd.DataFrame(
        {"prompt_tokens": measured["input_lens"], "output_tokens": measured["output_lens"]}
    )
    further = (frame["output_tokens"] - 1).replace(0, np.nan)
    for name, result in (("measured", measured), ("simulated", simulated)):
        frame[f"{name}_ttft_s"] = np.asarray(result["ttfts"], dtype=float)
        frame[f"{name}_e2el_s"] = np.asarray(result["latencies"], dtype=float)
        frame[f"{name}_tpot_s"] = (frame[f"{name}_e2el_s"] - frame[f"{name}_ttft_s"]) / further
    for metric in LATENCIES:
        frame[f"error_{metric}"] = (
            frame[f"simulated_{metric}_s"] / frame[f"measured_{metric}_s"] - 1
        )
    return frame


def _require_same_requests(measured: Mapping[str, Any], simulated: Mapping[str, Any]) -> None:
    for name in ("input_lens", "output_lens"):
        ours, theirs = np.asarray(simulated[name]), np.asarray(measured[name])
        if len(ours) != len(theirs):
            raise ValueError(
                f"{len(theirs)} requests were measured and {len(ours)} simulated: give the results "
                f"of the same workload"
            )
        if (ours != theirs).any():
            at = int(np.argmax(ours != theirs))
            raise ValueError(
                f"{name} of request {at} (counted from 0) is {theirs[at]} measured and {ours[at]} "
                f"simulated: give the results of the same requests, with --ignore-eos, none failed"
            )


def compare(measured: Mapping[str, Any], simulated: Mapping[str, Any]) -> pd.DataFrame:
    """One row a quantity: quantity (with its unit), measured, simulated and error, simulated over
    measured less 1.

    The distributions of TTFT, TPOT and E2EL, throughputs, and batches and fill where both results
    know them. With arrays in both, rows follow that say how far single requests are off: the
    median, P90 and P99 over the requests of the error's absolute value, as `error`.
    """
    rows = [_row(label, measured, simulated, key) for key, label in _shared(measured, simulated)]
    if all(array in result for array in ARRAYS for result in (measured, simulated)):
        frame = by_request(measured, simulated)
        rows += [_distribution(frame, metric, share) for metric in LATENCIES for share in SHARES]
        rows += [_request_error(frame, metric, share) for metric in LATENCIES for share in SHARES]
    return pd.DataFrame(rows, columns=["quantity", "measured", "simulated", "error"])


def _shared(measured: Mapping[str, Any], simulated: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Key and label of each number that both results have."""
    labels = {
        "request_throughput": "requests/s",
        "output_throughput": "output tokens/s",
        "duration": "duration [s]",
        "spyre_batches": "batches",
        "spyre_fill": "fill",
    }
    if any(array not in result for array in ARRAYS for result in (measured, simulated)):
        labels |= {
            f"{of}_{metric}_ms": f"{of} {label} [ms]"
            for metric, label in LATENCIES.items()
            for of in ("mean", "median", "p90", "p99")
        }
    both = set(measured) & set(simulated)
    return [(key, label) for key, label in labels.items() if key in both]


def _row(
    label: str, measured: Mapping[str, Any], simulated: Mapping[str, Any], key: str
) -> dict[str, Any]:
    return _quantity(label, float(measured[key]), float(simulated[key]))


def _quantity(label: str, measured: float, simulated: float) -> dict[str, Any]:
    error = simulated / measured - 1 if measured else np.nan
    return {"quantity": label, "measured": measured, "simulated": simulated, "error": error}


def _distribution(frame: pd.DataFrame, metric: str, share: int) -> dict[str, Any]:
    values = (frame[f"{of}_{metric}_s"].quantile(share / 100) for of in ("measured", "simulated"))
    return _quantity(f"{LATENCIES[metric]} {_name(share)} [s]", *map(float, values))


def _request_error(frame: pd.DataFrame, metric: str, share: int) -> dict[str, Any]:
    error = float(frame[f"error_{metric}"].abs().quantile(share / 100))
    label = f"{LATENCIES[metric]} of a request, {_name(share)} error"
    return {"quantity": label, "measured": np.nan, "simulated": np.nan, "error": error}


def _name(share: int) -> str:
    return "median" if share == 50 else f"P{share}"
