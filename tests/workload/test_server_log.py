"""Requests made up for what a server says of its load: the lines of its log, and /metrics."""

import os

import numpy as np
import pytest

from spyre_bench.workload.server_log import LINES, METRICS, from_lines, from_metrics, kind_of
from spyre_bench.workload.workload import Workload

HEAD = "(APIServer pid=7) INFO {} [loggers.py:271] Engine 000: "
LINE = (
    HEAD + "Avg prompt throughput: {:.1f} tokens/s, Avg generation throughput: {:.1f} tokens/s, "
    "Running: {} reqs, Waiting: {} reqs, GPU KV cache usage: 1.0%, Prefix cache hit rate: 0.0%\n"
)


def log(*rows) -> str:
    lines = [LINE.format(*row) for row in rows]
    return "INFO 11-26 13:08:00 [api_server.py:1] starting\n" + "".join(lines) + "Traceback\n"


def lengths() -> Workload:
    tokens = np.array([100, 300])
    return Workload("like", np.zeros(2), tokens, tokens // 10, tokens // 5)


def test_lines_of_a_log_become_as_many_tokens_at_their_times(tmp_path):
    path = tmp_path / "server.log"
    path.write_text(
        log(
            ("11-26 13:09:10", 4000.0, 400.0, 3, 0),
            ("11-26 13:09:20", 0.0, 100.0, 1, 0),
            ("11-26 13:09:30", 4000.0, 300.0, 4, 2),
        )
    )
    assert kind_of(path) == LINES
    found = from_lines(path, lengths(), np.random.default_rng(0))
    assert found.output_tokens.sum() == pytest.approx(8000, rel=0.15)
    assert found.prompt_tokens.sum() == pytest.approx(80_000, rel=0.01)
    assert len(found) == 400, "8,000 tokens of outputs, 20 a request"
    between = (found.arrival_s > 10.1) & (found.arrival_s < 19.9)
    assert not between.any(), "no prompt was processed there"
    assert "3 lines of a vLLM log, up to 4 running and 2 waiting" in found.read_as
    assert "the lengths of like, prompts x0.97" in found.read_as


@pytest.mark.parametrize("second", ["10", "11"])
def test_engines_of_one_server_each_have_their_own_intervals(tmp_path, second):
    path = tmp_path / "server.log"
    rows = [(f"11-26 13:0{minute}:", 4000.0, 400.0, 3, 0) for minute in range(5)]
    lines = [
        log((at + seconds, *rest)).replace("Engine 000", f"Engine {engine}")
        for at, *rest in rows
        for engine, seconds in (("000", "10"), ("001", second))
    ]
    path.write_text("".join(lines))
    found = from_lines(path, lengths(), np.random.default_rng(0))
    assert found.prompt_tokens.sum() == pytest.approx(10 * 60 * 4000, rel=0.01)


def test_an_idle_log_and_one_that_goes_back_are_refused(tmp_path):
    path = tmp_path / "server.log"
    path.write_text(log(("11-26 13:09:10", 0.0, 0.0, 0, 0)))
    with pytest.raises(ValueError, match="no line with tokens of prompts and of outputs"):
        from_lines(path, lengths(), np.random.default_rng(0))
    path.write_text(log(("11-26 13:09:10", 1.0, 1.0, 1, 0), ("11-26 13:09:00", 1.0, 1.0, 1, 0)))
    with pytest.raises(ValueError, match="go back in time"):
        from_lines(path, lengths(), np.random.default_rng(0))


def histogram(name: str, **below: float) -> str:
    ends = {end.removeprefix("le_"): count for end, count in below.items()}
    return "".join(
        f'vllm:request_{name}_bucket{{engine="0",le="{end}",model_name="m"}} {count}\n'
        for end, count in ends.items()
    )


SCRAPE = (
    "# HELP vllm:request_prompt_tokens Number of prefill tokens processed.\n"
    + histogram("prompt_tokens", **{"le_50.0": 0, "le_100.0": 40, "le_200.0": 100, "le_+Inf": 100})
    + histogram("generation_tokens", **{"le_5.0": 0, "le_10.0": 100, "le_+Inf": 100})
    + histogram("params_max_tokens", **{"le_20.0": 50, "le_50.0": 100, "le_+Inf": 100})
)


def test_a_scrape_becomes_requests_of_its_histograms(tmp_path):
    path = tmp_path / "metrics.txt"
    path.write_text(SCRAPE + "process_start_time_seconds 1.7e9\n")
    os.utime(path, (1.7e9 + 600, 1.7e9 + 600))
    assert kind_of(path) == METRICS
    found = from_metrics(path, np.random.default_rng(0))
    assert len(found) == 100
    assert ((found.prompt_tokens > 50) & (found.prompt_tokens <= 100)).sum() == 40
    assert found.prompt_tokens.max() <= 200
    assert found.output_tokens.min() >= 6
    assert found.output_tokens.max() <= 10
    assert (found.max_tokens <= 20).sum() == pytest.approx(50, abs=1)
    longer = np.corrcoef(found.output_tokens, found.max_tokens)[0, 1]
    assert longer > 0.8, "who asks for more gets more"
    assert 500 < found.span_s < 600
    assert (
        "100 requests, over 600 s from the server's start to the file's own time" in found.read_as
    )


def test_the_last_of_several_scrapes_counts_and_engines_are_added_up(tmp_path):
    path = tmp_path / "metrics.txt"
    other = SCRAPE.replace('engine="0"', 'engine="1"')
    path.write_text(SCRAPE.replace(" 100\n", " 60\n") + SCRAPE + other)
    found = from_metrics(path, np.random.default_rng(0))
    assert len(found) == 200
    assert found.span_s == 0
    assert "all at once" in found.read_as


def test_a_scrape_before_the_first_request_is_refused(tmp_path):
    path = tmp_path / "metrics.txt"
    path.write_text(histogram("prompt_tokens", **{"le_50.0": 0, "le_+Inf": 0}))
    with pytest.raises(ValueError, match="counts no finished request"):
        from_metrics(path, np.random.default_rng(0))
    assert kind_of(tmp_path / "none.txt") is None
