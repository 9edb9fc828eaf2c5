"""Two sets of shapes held against each other, on machines that are made up."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from spyre_bench.cost.shape_cost import ShapeCosts
from spyre_bench.metrics.summary import busy_s
from spyre_bench.policy.continuous import RULES
from spyre_bench.simulate.continuous import simulate
from spyre_bench.validate.check import calibrate
from spyre_bench.validate.pairs import SAVING, Verdict, pairs, register_saving
from spyre_bench.validate.registered import Prediction
from tests.validate.machine import PagedMachine
from tests.validate.test_continuous import REQUESTS, WARMED

WIDE = replace(WARMED, decode=WARMED.decode[1:])
"""Without the decode shape of two rows."""


def machine(costs: ShapeCosts, **setting) -> PagedMachine:
    setting = {"drift": 0.0, "delay_s": 0.004} | setting
    return PagedMachine(costs, [1.2] * len(costs.each), **setting)


@pytest.fixture
def hosts():
    return {"wide": machine(WIDE), "both": machine(WARMED)}


@pytest.fixture
def told(hosts, tmp_path) -> Prediction:
    constants = {name: calibrate(host, tmp_path, name) for name, host in hosts.items()}
    return register_saving(constants, REQUESTS, tmp_path)


@pytest.fixture
def saving() -> float:
    wide, both = (
        busy_s(simulate(REQUESTS, costs.scaled([1.2] * len(costs.each)), RULES, estimated=costs))
        for costs in (WIDE, WARMED)
    )
    return 1 - both / wide


def test_the_saving_is_registered_with_the_constants_of_both(told, saving):
    assert told.points[SAVING] == pytest.approx(saving)
    low, high = told.intervals[SAVING]
    assert low < saving < high
    said = json.loads(told.path.read_text())
    assert list(said["constants"]) == ["wide", "both"]
    assert len(said["constants"]["wide"]["shapes"]) == 3
    assert said["requests"]["count"] == len(REQUESTS)


def test_what_was_said_comes_and_each_pair_begins_with_the_other_one(hosts, told, saving):
    order = []
    for name, host in hosts.items():
        host.serve = lambda *asked, of=name, serve=host.serve: order.append(of) or serve(*asked)
    frame = pd.DataFrame(pairs(hosts, REQUESTS, 3))
    assert order == ["both", "wide", "wide", "both", "both", "wide"]
    assert frame[SAVING].tolist() == pytest.approx([saving] * 3)
    assert (1 - frame["both busy_s"] / frame["wide busy_s"]).tolist() == frame[SAVING].tolist()
    assert (frame["e2el_saving"] > 0).all()
    found = Verdict(frame, told)
    assert (found.is_better, found.is_as_predicted) == (True, True)
    assert str(found).startswith("3 of 3 pairs better")
    assert [met for _, met, _ in found.aims()] == [True, True]


def test_a_pair_that_others_disturbed_says_nothing(hosts, told):
    serve = hosts["both"].serve
    hosts["both"].serve = lambda *asked: serve(*asked)._replace(others=0.3)
    found = Verdict(pd.DataFrame(pairs(hosts, REQUESTS, 2)), told)
    assert (found.pairs, found.is_better, found.is_as_predicted) == (0, None, None)
    assert str(found).startswith("every pair was disturbed; ")
    assert not list(found.aims()), "nothing was missed"


def test_eight_of_ten_are_too_few_and_more_than_was_said_is_not_as_was_said(told):
    _, high = told.intervals[SAVING]
    eight = pd.DataFrame({SAVING: [high] * 8 + [-high] * 2, "disturbed": False})
    assert not Verdict(eight, told).is_better
    more = Verdict(pd.DataFrame({SAVING: [high + 0.01] * 10, "disturbed": False}), told)
    assert (more.is_better, more.is_as_predicted) == (True, False)
