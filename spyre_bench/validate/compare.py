"""A measured run beside a simulated one of the same requests: how far the simulator is off.

Both are results in the form of `vllm bench serve`; with its `--save-detailed` arrays they are
compared request by request too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spyre_bench.files import read_json

LENGTHS = ("input_lens", "output_lens")
TOTALS = {
    "completed": "requests completed",
    "failed": "requests failed",
    "total_input_tokens": "prompt tokens",
    "total_output_tokens": "output tokens",
}
ARRAYS = (*LENGTHS, "ttfts", "latencies")
LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "e2el": "E2EL"}
SHARES = (50, 90, 99)
NUMBERS = {
    "request_throughput": "requests/s",
    "output_throughput": "output tokens/s",
    "duration": "duration [s]",
    "spyre_batches": "batches",
    "spyre_fill": "fill",
}
STATISTICS = {
    f"{of}_{metric}_ms": f"{of} {label} [ms]"
    for metric, label in LATENCIES.items()
    for of in ("mean", "median", "p90", "p99")
}
COLUMNS = ["quantity", "kind", "measured", "simulated", "error", "direction"]
HIGHER_IS_BETTER = {"requests/s", "output tokens/s", "fill"}
EXACT = 5e-4  # a bias that rounds to 0.0 %
LARGEST = 1e15  # of any number in a result; a larger one is a slip


def read_result(path: Path) -> dict[str, Any]:
    """A result file, its numbers and arrays looked at; raises ValueError with its name where it is
    none. Without `latencies` they are the sums of `ttfts` and `itls`."""
    result = read_json(path)
    if not isinstance(result, dict) or "request_throughput" not in result:
        raise ValueError(
            f"{path}: not a result of `vllm bench serve --save-result` or `spyre-bench simulate`: "
            f"it has no request_throughput"
        )
    try:
        known = [key for key in NUMBERS | STATISTICS if key in result]
        known += [key for key in TOTALS if result.get(key) is not None]
        numbers = {key: _number(key, result[key]) for key in known}
        return result | numbers | _arrays(result)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _number(key: str, value: Any) -> float:
    if not _is_number(value):
        raise ValueError(f"{key} {_shown(value)} is not a number: save the result again")
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and not abs(value) >= LARGEST


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _arrays(result: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Those there are, each with a number of 0 or more for each request."""
    arrays = {name: result[name] for name in ARRAYS if result.get(name) is not None}
    if "latencies" not in arrays and "ttfts" in arrays and result.get("itls") is not None:
        arrays["latencies"] = _latencies(arrays["ttfts"], result["itls"])
    for name, values in arrays.items():
        _require_numbers(name, values, whole=name in LENGTHS)
    sizes = {name: len(values) for name, values in arrays.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ValueError(f"its arrays are of unequal length: {listed}; save the result again")
    return arrays


def _latencies(ttfts: Any, itls: Any) -> list[float]:
    """From a request's first token to its last one there are its gaps."""
    _require_numbers("ttfts", ttfts)
    if not isinstance(itls, list) or len(itls) != len(ttfts):
        raise ValueError("itls is not a list with the gaps of each request: save the result again")
    for gaps in itls:
        _require_numbers("itls", gaps)
    return [ttft + sum(gaps) for ttft, gaps in zip(ttfts, itls, strict=True)]


def _require_numbers(name: str, values: Any, whole: bool = False) -> None:
    if not isinstance(values, list):
        raise ValueError(f"{name} {_shown(values)} is not a list: save the result again")
    for place, value in enumerate(values):
        if not (_is_number(value) and value >= 0) or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            raise ValueError(
                f"{name} of request {place} (counted from 0) is {_shown(value)}, not {kind} of 0 "
                f"or more: save the result again"
            )


def by_request(measured: Mapping[str, Any], simulated: Mapping[str, Any]) -> pd.DataFrame:
    """One row per request: prompt_tokens, output_tokens, and for each of ttft, tpot (nan for one
    token) and e2el the seconds `measured_` and `simulated_`, and `error_`, simulated over measured
    less 1 (nan where nothing was measured).

    Raises ValueError where a result lacks the arrays, or where the two are not of the same
    requests.
    """
    for sentence in left_out(measured, simulated):
        raise ValueError(sentence)
    _require_same_lengths(measured, simulated)
    frame = pd.DataFrame(
        {"prompt_tokens": measured["input_lens"], "output_tokens": measured["output_lens"]}
    )
    further = (frame["output_tokens"] - 1).replace(0, np.nan)
    for name, result in (("measured", measured), ("simulated", simulated)):
        frame[f"{name}_ttft_s"] = np.asarray(result["ttfts"], dtype=float)
        frame[f"{name}_e2el_s"] = np.asarray(result["latencies"], dtype=float)
        frame[f"{name}_tpot_s"] = (frame[f"{name}_e2el_s"] - frame[f"{name}_ttft_s"]) / further
    for metric in LATENCIES:
        known_s = frame[f"measured_{metric}_s"].replace(0, np.nan)
        frame[f"error_{metric}"] = frame[f"simulated_{metric}_s"] / known_s - 1
    return frame


def left_out(measured: Mapping[str, Any], simulated: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each result without an array that single requests are compared by."""
    for name, result in (("measured", measured), ("simulated", simulated)):
        if missing := [array for array in ARRAYS if result.get(array) is None]:
            yield (
                f"single requests are not compared, the {name} result has no {missing[0]}: save it "
                f"with --save-detailed (vllm bench serve) or --detailed (spyre-bench simulate)"
            )


def _require_same_totals(measured: Mapping[str, Any], simulated: Mapping[str, Any]) -> None:
    """All that results without arrays say of whose they are."""
    for key, what in TOTALS.items():
        ours, theirs = simulated.get(key), measured.get(key)
        if None not in (ours, theirs) and ours != theirs:
            raise ValueError(
                f"{theirs:,} {what} measured and {ours:,} simulated: give the results of the same "
                f"requests, with --ignore-eos"
            )


def _require_same_lengths(measured: Mapping[str, Any], simulated: Mapping[str, Any]) -> None:
    for name in LENGTHS:
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


def by_quantity(measured: Mapping[str, Any], simulated: Mapping[str, Any]) -> pd.DataFrame:
    """One row per quantity: quantity (with its unit), kind, measured, simulated, error, and
    direction.

    Of kind "bias" `error` is signed, simulated over measured less 1, and `direction` says whether
    the simulator is optimistic or pessimistic there: the distributions of TTFT, TPOT and E2EL,
    throughputs, batches and fill where both results know them and, with arrays in both, the median
    over single requests. Of kind "absolute" it is how far single requests are off either way:
    median, P90 and P99 of the error's absolute value. Without arrays `left_out` says what is
    missing. Raises ValueError for results of other requests, as far as they tell.
    """
    compared_one_by_one = not any(left_out(measured, simulated))
    if not compared_one_by_one:
        _require_same_totals(measured, simulated)
    rows = [
        _quantity(label, float(measured[key]), float(simulated[key]))
        for key, label in _shared(measured, simulated)
    ]
    if compared_one_by_one:
        frame = by_request(measured, simulated)
        rows += [_distribution(frame, metric, share) for metric in LATENCIES for share in SHARES]
        rows += [_request_bias(frame, metric) for metric in LATENCIES]
        rows += [_request_error(frame, metric, share) for metric in LATENCIES for share in SHARES]
    return pd.DataFrame(rows, columns=COLUMNS)


def direction(quantity: str, bias: float) -> str:
    """Optimistic is a simulator that promises more than came, a higher rate or a shorter wait, and
    pessimistic one that promises less; empty within a twentieth of a per cent."""
    if not abs(bias) >= EXACT:
        return ""
    return "optimistic" if (bias > 0) == (quantity in HIGHER_IS_BETTER) else "pessimistic"


def _shared(measured: Mapping[str, Any], simulated: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Key and label of each number that both results have."""
    labels = NUMBERS | (STATISTICS if any(left_out(measured, simulated)) else {})
    both = set(measured) & set(simulated)
    return [(key, label) for key, label in labels.items() if key in both]


def _quantity(label: str, measured: float, simulated: float) -> dict[str, Any]:
    error = simulated / measured - 1 if measured else np.nan
    said = {"quantity": label, "kind": "bias", "measured": measured, "simulated": simulated}
    return said | {"error": error, "direction": direction(label, error)}


def _distribution(frame: pd.DataFrame, metric: str, share: int) -> dict[str, Any]:
    values = (frame[f"{of}_{metric}_s"].quantile(share / 100) for of in ("measured", "simulated"))
    return _quantity(f"{LATENCIES[metric]} {_name(share)} [s]", *map(float, values))


def _request_bias(frame: pd.DataFrame, metric: str) -> dict[str, Any]:
    label, error = f"{LATENCIES[metric]} of a request, median", frame[f"error_{metric}"].median()
    said = {"quantity": label, "kind": "bias", "error": float(error)}
    return said | {"direction": direction(label, error)}


def _request_error(frame: pd.DataFrame, metric: str, share: int) -> dict[str, Any]:
    error = float(frame[f"error_{metric}"].abs().quantile(share / 100))
    label = f"{LATENCIES[metric]} of a request, {_name(share)} absolute error"
    return {"quantity": label, "kind": "absolute", "error": error, "direction": ""}


def _name(share: int) -> str:
    return "median" if share == 50 else f"P{share}"
