"""`make trust` and `make prove` from their options to their exit codes, on machines made up in the
place of servers."""

import contextlib
import json

import pandas as pd
import pytest

from spyre_bench.cost.source import SHAPES, load_cost
from spyre_bench.shape_set import ShapeSet
from spyre_bench.validate import continuous, pairs, static
from tests import prove, trust
from tests.validate.machine import Machine, PagedMachine
from tests.validate.test_check import BUCKETS, COSTS
from tests.validate.test_checks_on_a_machine import POLICY


def shapes_machine(shapes, **setting) -> PagedMachine:
    costs = load_cost(SHAPES).of_shapes(shapes)
    setting = {"drift": 0.0, "delay_s": 0.004} | setting
    return PagedMachine(costs, [1.2] * len(costs.each), **setting)


def run(target, monkeypatch, out, *words) -> int:
    monkeypatch.setattr("sys.argv", [target.__name__, "--out", str(out), *words])
    return target.main()


HOSTS = {
    "static": (
        lambda: Machine(COSTS, POLICY, drift=0.0, batch=0.0, step=0.0),
        lambda drawn: static.fitting(drawn, BUCKETS),
    ),
    "continuous": (
        lambda: shapes_machine(trust.SHAPES),
        lambda drawn: continuous.fitting(drawn, trust.SHAPES),
    ),
}


@pytest.mark.parametrize("batching", HOSTS)
def test_trust_prints_and_keeps_every_check_and_its_aims(batching, monkeypatch, tmp_path, capsys):
    machine, fitting = HOSTS[batching]

    @contextlib.contextmanager
    def served(*setting):
        assert setting[0] == batching
        yield machine(), fitting

    monkeypatch.setattr(trust, "served", served)
    words = ("--batching", batching, "--checks", "2", "--aborts", "0", "--requests", "8")
    code = run(trust, monkeypatch, tmp_path, *words)
    printed = capsys.readouterr().out
    assert "| azure_conv load 0.4 seed 0 | " in printed
    assert "met: the simulator decides as the server" in printed
    assert code == ("MISSED" in printed)
    judged = pd.read_csv(tmp_path / "predictions.csv")
    assert judged["run"].nunique() == 2
    assert all((tmp_path / name).exists() for name in judged["registered"])
    assert {"told_apart.csv", "errors.csv"} <= {path.name for path in tmp_path.iterdir()}


def test_prove_registers_a_saving_and_holds_it_against_pairs(monkeypatch, tmp_path, capsys):
    sets: list = []

    @contextlib.contextmanager
    def serve(model, buckets, folder, **setting):
        folder.mkdir(parents=True)
        names = ("prefill_shapes", "decode_shapes", "blocks")
        sets.append(ShapeSet.parse(*(setting[name] for name in names)))
        yield None

    def host(server, folder):
        found = shapes_machine(sets[-1])
        found.directory = folder
        return found

    monkeypatch.setattr(pairs.serving, "serve", serve)
    monkeypatch.setattr(pairs, "ContinuousHost", host)
    monkeypatch.setattr(prove, "model_directory", lambda name: name)
    words = ("--pairs", "2", "--requests", "6", "--length-scale", "0.06", "--rows", "4")
    code = run(prove, monkeypatch, tmp_path, *words, "--chunk", "128")
    *_, last = capsys.readouterr().out.splitlines()
    said = json.loads(last)
    assert said["pairs"] == 2
    assert said["as_predicted"]
    assert said["saved"] == pytest.approx(said["predicted"], abs=0.01)
    assert code == (not said["better"])
    assert len(pd.read_csv(tmp_path / "pairs.csv")) == 2
    assert len(list(tmp_path.glob("pairs-prediction-*.json"))) == 1
