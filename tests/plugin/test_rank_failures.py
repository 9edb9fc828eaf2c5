"""Which rank was the cause: from what ranks wrote down and from what became of their processes."""

import os
import time
from types import SimpleNamespace

import pytest

from spyre_bench.engine.parallel import Rank
from spyre_bench.plugin.rank_failures import RankProcess, diagnose, last_words, open_last_words


@pytest.fixture
def config():
    return SimpleNamespace(additional_config={})


@pytest.fixture
def directory(config):
    from pathlib import Path

    with open_last_words(config) as name:
        yield Path(name)


def ranks(*exitcodes: int | None) -> list[RankProcess]:
    """Processes that ended so; those still alive are this one."""
    return [
        RankProcess(Rank(rank, len(exitcodes)), SimpleNamespace(pid=os.getpid(), exitcode=exitcode))
        for rank, exitcode in enumerate(exitcodes)
    ]


def fail(config, rank: Rank, error: Exception) -> None:
    with last_words(config, rank):
        raise error


def test_nothing_is_wrong_while_all_run(directory):
    assert diagnose(ranks(None, None), directory) is None


def test_a_rank_killed_without_a_word_is_the_cause_whatever_others_say_of_it(config, directory):
    with pytest.raises(RuntimeError):
        fail(config, Rank(0, 3), RuntimeError("connection closed by peer"))
    cause = diagnose(ranks(None, -9, None), directory)
    assert cause.startswith("rank 1 of 3 (process")
    assert "was killed by SIGKILL" in cause
    assert "connection" not in cause


def test_an_error_is_no_cause_before_the_death_behind_it_could_have_shown(config, directory):
    with pytest.raises(RuntimeError):
        fail(config, Rank(0, 2), RuntimeError("connection reset by peer"))
    assert diagnose(ranks(None, None), directory, told_for_s=60) is None
    assert "rank 1 of 2" in diagnose(ranks(None, -9), directory, told_for_s=60)
    assert "connection reset" in diagnose(ranks(None, None), directory)


def test_of_several_errors_the_first_is_the_cause(config, directory):
    with pytest.raises(SystemExit):
        fail(config, Rank(2, 3), MemoryError("no bytes"))
    time.sleep(0.01)
    with pytest.raises(RuntimeError):
        fail(config, Rank(0, 3), RuntimeError("connection closed by peer"))
    assert "rank 2 of 3" in diagnose(ranks(None, None, 1), directory)
    assert diagnose([], directory).endswith("failed: MemoryError: no bytes")


def test_only_the_rank_that_answers_goes_on_after_an_error(config, directory):
    """The others would be waited for in a collective: their end breaks it."""
    with pytest.raises(KeyError):
        fail(config, Rank(0, 2), KeyError("x"))
    with pytest.raises(SystemExit):
        fail(config, Rank(1, 2), KeyError("x"))


def test_one_rank_alone_writes_nothing(config):
    with pytest.raises(KeyError):
        fail(config, Rank(0, 1), KeyError("x"))


@pytest.mark.parametrize(
    ("code", "words"), [(-15, "was ended by SIGTERM"), (3, "ended with exit code 3")]
)
def test_other_ends_are_told(directory, code, words):
    assert words in diagnose(ranks(None, code), directory)
