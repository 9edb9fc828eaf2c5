"""Shared by all tests. Engine and plugin tests are left out where only the core is installed."""

import logging
import os
import signal
from pathlib import Path

import hypothesis
import pytest

# A test that waits for another process has done nothing wrong.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# Who starts the tests may ignore Ctrl-C (nohup, a shell in the background), and every process that
# they start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parent.parent.parent / "shared"

collect_ignore = (
    [
        "browser",
        "checkpoints",
        "choose/test_stacks_own_code.py",
        "engine",
        "explore",
        "measure",
        "notebooks",
        "plots",
        "plugin",
        "test_fuzz.py",
        "review/test_document.py",
        "review/test_page.py",
        "runs/test_execute.py",
        "runs/test_grid.py",
        "runs/test_html.py",
        "runs/test_pages.py",
        "runs/test_parameters.py",
        "runs/test_report.py",
        "runs/test_saved.py",
        "runs/test_suite.py",
    ]
    if os.environ.get("SPYRE_BENCH_CORE_ONLY")
    else []
)


def pytest_addoption(parser):
    parser.addoption("--screenshots", metavar="DIR", help="where pages of browser tests are kept")
    parser.addoption("--passed", metavar="FILE", help="takes the names of the tests that passed")
    parser.addoption("--without", metavar="FILE", help="leaves out the tests that it names")


# `make test` runs the core's tests in an environment of the core alone and the others in the full
# one. What passed there decides, and not a list of files: what was skipped there runs here.
# Say `--without=FILE`: a file that stands alone pytest takes for one of tests, and then it does not
# know the option.
def pytest_terminal_summary(terminalreporter, config):
    if path := config.getoption("--passed"):
        passed = {report.nodeid for report in terminalreporter.stats.get("passed", ())}
        Path(path).write_text("".join(f"{name}\n" for name in sorted(passed)))


def pytest_collection_modifyitems(config, items):
    if path := config.getoption("--without"):
        done = set(Path(path).read_text().splitlines())
        again = [one for one in items if one.nodeid not in done or one.get_closest_marker("both")]
        config.hook.pytest_deselected(items=[one for one in items if one not in set(again)])
        items[:] = again


@pytest.fixture(autouse=True)
def our_words_are_caught(monkeypatch):
    """By `caplog`: our platform, once loaded, hands them to vLLM."""
    monkeypatch.setattr(logging.getLogger("spyre_bench"), "parent", logging.getLogger())


@pytest.fixture(scope="session")
def shared() -> Path:
    """The team's shared folder: must be there in CI, may be missing in a user's clone."""
    if not SHARED.exists():
        if os.environ.get("CI"):
            pytest.fail(f"CI is set but {SHARED} is missing")
        pytest.skip(f"{SHARED} is not here")
    return SHARED


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The embedded model's directory, unpacked at first use."""
    from spyre_bench.checkpoints.find import model_directory

    return model_directory("smollm2")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """Two layers, 12 heads, a head of its own for the output."""
    from tests.tiny_models import tiny_model

    return tiny_model(tmp_path_factory.mktemp("tiny_llama"), "llama")


@pytest.fixture(scope="session")
def tiny_granite(tmp_path_factory) -> Path:
    """Two layers, 24 heads over 12 KV heads, tied embeddings, every multiplier at work."""
    from tests.tiny_models import tiny_model

    return tiny_model(tmp_path_factory.mktemp("tiny_granite"), "granite", heads=24)
