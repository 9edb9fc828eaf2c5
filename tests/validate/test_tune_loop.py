"""The loop closed on a real server: traffic on bad buckets, tune, restart, the same traffic."""

import json

import numpy as np
import pytest

from spyre_bench.cli import main
from spyre_bench.metrics.served import read_served
from spyre_bench.shapes import BucketSet
from spyre_bench.workload.workload import Workload

BAD = BucketSet.parse("1,256,64 1,512,32")


def traffic() -> Workload:
    rng = np.random.default_rng(7)
    outputs = rng.integers(8, 30, 60)
    arrival_s = np.cumsum(rng.exponential(1.2, 60))
    prompts = rng.integers(20, 120, 60)
    return Workload("traffic", arrival_s - arrival_s[0], prompts, outputs, outputs)


@pytest.mark.loop
@pytest.mark.vllm
def test_the_measured_saving_is_within_the_predicted_interval(tmp_path, monkeypatch, capsys):
    from spyre_bench.checkpoints.find import model_directory
    from spyre_bench.validate.server import replay, serve

    def served(buckets, name: str):
        with serve(model_directory(), buckets, tmp_path / name) as server:
            replay(server, traffic(), tmp_path / name, "traffic")
            return read_served(server.pass_log), server.pass_log

    before, log = served(BAD, "before")
    shapes = tmp_path / "shapes.json"
    monkeypatch.setattr("sys.argv", ["spyre-bench", "tune", str(log), "--out", str(shapes)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 0
    print(capsys.readouterr().out)
    told = json.loads(shapes.read_text())
    assert told["tuned"]["verdict"].startswith("change: ")
    after, _ = served(f"@{shapes}", "after")
    assert {cost.bucket for cost in after.costs} == set(BucketSet.parse(f"@{shapes}"))
    saved = 1 - after.busy_s / before.busy_s
    saving = told["tuned"]["saving"]
    print(
        f"busy {before.busy_s:.1f} s, then {after.busy_s:.1f} s: {saved:.1%} saved, predicted "
        f"{saving['point']:.1%} ({saving['p5']:.1%} to {saving['p95']:.1%})"
    )
    assert saving["p5"] <= saved <= saving["p95"]
