"""vLLM's client as it answers lines; in place of its run a stand-in."""

import io
import json

from spyre_bench.plugin import bench_client


def test_each_run_has_an_answer_and_a_failure_ends_none_of_the_others(monkeypatch, capsys):
    seeds = []

    def run(given) -> None:
        seeds.append(given.seed)
        if given.seed == 2:
            raise OSError("nobody answers")

    monkeypatch.setattr(bench_client.serve, "main", run)
    options = [["--seed", "1"], ["--no-such-option"], ["--seed", "2"], ["--seed", "3"]]
    answers = io.StringIO()
    bench_client.answer([json.dumps(one) for one in options], answers)
    assert seeds == [1, 2, 3]
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [
        *(True, False, False, True)
    ]
    why = capsys.readouterr().err
    assert "--no-such-option" in why
    assert "OSError: nobody answers" in why
