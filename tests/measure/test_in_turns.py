"""Two commands, and the engines of two checkouts, measured in turns."""

from pathlib import Path

import pytest

from spyre_bench.measure.in_turns import Command, engine_command, measure_starts_in_turns
from tests import planted


def writes_down(log: Path, name: str) -> str:
    return f"while read _; do echo {name} >>{log}; echo '{{\"a_s\": 1}}'; done"


def test_who_is_first_changes_from_pair_to_pair(tmp_path):
    log = tmp_path / "log"
    lines = (writes_down(log, it) for it in ("base", "new"))
    pairs = list(measure_starts_in_turns(*lines, starts=1, count=3))
    assert [len(pair) for pair in pairs] == [1, 1, 1]
    assert log.read_text().split() == ["base", "new", "base", "new", "new", "base", "base", "new"]


def test_a_command_that_ends_after_its_answer_is_started_anew(tmp_path):
    with Command(f'echo started >>{tmp_path}/log; echo \'{{"a_s": 2, "of": "it"}}\'') as command:
        assert [command.figures() for _ in range(3)] == [{"a_s": 2.0}] * 3
    assert (tmp_path / "log").read_text().split() == ["started"] * 3


def test_lines_for_people_are_passed_over():
    with Command("""echo loading; echo 12; echo '[1]'; echo '{"a_s": 3}'""") as command:
        assert command.figures() == {"a_s": 3.0}


def test_both_are_started_as_often_as_told(tmp_path):
    log = tmp_path / "log"
    lines = [f"echo {it} starts >>{log}; {writes_down(log, it)}" for it in ("base", "new")]
    assert len(list(measure_starts_in_turns(*lines, starts=3, count=2))) == 6
    assert log.read_text().splitlines().count("base starts") == 3
    assert log.read_text().splitlines().count("new") == 3 * (1 + 2)  # one to be ready


@pytest.mark.engine
def test_each_side_runs_the_code_of_its_own_checkout(tmp_path, tiny_llama):
    """The copy's decode passes take five times as long."""
    copy = planted.copied(tmp_path / "copy", planted.LONGER.format(times=5))
    setting = {"model": str(tiny_llama), "buckets": "1,64,4", "compile_backend": "eager"}
    sides = (engine_command(it, **setting) for it in (planted.CHECKOUT, copy))
    for pair in measure_starts_in_turns(*sides, starts=1, count=3):
        ratio = (pair["new"] / pair["base"]).set_axis(pair["figure"])
    figures = ("prefill_s", "prefill_cpu_s", "decode_s", "decode_cpu_s")
    assert list(ratio.index) == [f"1,64,4 {figure}" for figure in figures]
    assert ratio["1,64,4 decode_cpu_s"] > 2
