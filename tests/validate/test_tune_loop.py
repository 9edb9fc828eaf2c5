"""The loop closed on a real server, of either kind of batching: traffic on bad buckets or shapes,
tune, restart, the same traffic. Nothing else should be running: a run that others disturbed is
skipped, for neither a hit nor a miss then says anything."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spyre_bench.checkpoints.find import model_directory
from spyre_bench.cli import main
from spyre_bench.metrics.served import Served, read_served
from spyre_bench.metrics.served_steps import ServedSteps, read_served_steps
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import BucketSet
from spyre_bench.validate.check import OTHERS
from spyre_bench.validate.others import CpuTimes
from spyre_bench.validate.server import replay, serve
from spyre_bench.workload.workload import Workload

BAD = BucketSet.parse("1,256,64 1,512,32")
BAD_SHAPES = ShapeSet.parse("256,1024", "8,1024")  # chunks and rows that the traffic never fills


def traffic() -> Workload:
    rng = np.random.default_rng(7)
    outputs = rng.integers(8, 30, 60)
    arrival_s = np.cumsum(rng.exponential(1.2, 60))
    prompts = rng.integers(20, 120, 60)
    return Workload("traffic", arrival_s - arrival_s[0], prompts, outputs, outputs)


def served_by(setting: Mapping[str, Any], directory: Path) -> tuple[Path, float]:
    """The pass log of a server of this setting, with the traffic in it; and the cores that others
    kept busy meanwhile."""
    with serve(model_directory(), directory=directory, **{"buckets": None, **setting}) as server:
        times = CpuTimes.now(*server.sessions)
        replay(server, traffic(), directory, "traffic")
        return server.pass_log, CpuTimes.now(*server.sessions).others_since(times)


def tuned(log: Path, out: Path, monkeypatch) -> dict[str, Any]:
    """What `spyre-bench tune` writes, run as a user runs it."""
    monkeypatch.setattr("sys.argv", ["spyre-bench", "tune", str(log), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 0
    return json.loads(out.read_text())


def saving_comes_true(
    bad: dict[str, Any],
    better: Callable[[dict[str, Any], str], dict[str, Any]],
    read: Callable[[Path], Served | ServedSteps],
    directory: Path,
    monkeypatch,
) -> tuple[dict[str, Any], Served | ServedSteps]:
    """Serves the traffic with the `bad` setting and, after tune, with the `better` one, which is
    made of what the file says and how a setting names the file; holds the saving of busy seconds
    against the interval. Returns what the file says and the second run."""
    before_log, others_before = served_by(bad, directory / "before")
    before, shapes = read(before_log), directory / "shapes.json"
    told = tuned(before_log, shapes, monkeypatch)
    assert told["tuned"]["verdict"].startswith("change: ")
    after_log, others_after = served_by(better(told, f"@{shapes}"), directory / "after")
    after = read(after_log)
    saved = 1 - after.busy_s / before.busy_s
    saving = told["tuned"]["saving"]
    said = (
        f"busy {before.busy_s:.1f} s, then {after.busy_s:.1f} s: {saved:.1%} saved, predicted "
        f"{saving['point']:.1%} ({saving['p5']:.1%} to {saving['p95']:.1%}); others kept "
        f"{others_before:.2f} cores busy, then {others_after:.2f}"
    )
    print(said)
    if "device" not in bad and max(others_before, others_after) > OTHERS:
        pytest.skip(f"disturbed, which says nothing of tune: {said}")
    assert saving["p5"] <= saved <= saving["p95"], said
    return told, after


@pytest.mark.loop
@pytest.mark.vllm
def test_the_measured_saving_is_within_the_predicted_interval(tmp_path, monkeypatch):
    told, after = saving_comes_true(
        {"buckets": BAD},
        lambda _, file: {"buckets": file},
        read_served,
        tmp_path,
        monkeypatch,
    )
    assert {cost.bucket for cost in after.costs} == set(BucketSet.parse(told["buckets"]))


@pytest.mark.loop
@pytest.mark.vllm
@pytest.mark.parametrize("device", [{}, {"device": "simulated:shapes"}], ids=["cpu", "simulated"])
def test_under_continuous_batching_it_is_too(tmp_path, monkeypatch, device):
    """Passes of a simulated device sleep, so that others on this machine do not change them."""
    told, after = saving_comes_true(
        BAD_SHAPES.setting | device,
        lambda told, file: (
            device
            | {
                "batching": "continuous",
                "blocks": told["blocks"],
                "prefill_shapes": file,
                "decode_shapes": file,
            }
        ),
        read_served_steps,
        tmp_path,
        monkeypatch,
    )
    assert after.costs.shapes == ShapeSet.parse(
        told["prefill_shapes"], told["decode_shapes"], told["blocks"]
    )
