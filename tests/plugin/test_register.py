"""Who gets the device: the plugin activates only where nobody else should."""

import subprocess
import sys

import pytest

from spyre_bench.plugin import PLATFORM, register


@pytest.fixture
def probes(monkeypatch):
    """vLLM's probes for platforms of its own, here to be replaced by fakes."""
    import vllm.platforms

    fakes = dict.fromkeys(("tpu", "cuda", "rocm", "xpu", "cpu"), lambda: None)
    monkeypatch.setattr(vllm.platforms, "builtin_platform_plugins", fakes)
    return fakes


def test_without_any_platform_the_device_is_ours(monkeypatch, probes):
    monkeypatch.delenv("VLLM_PLUGINS")
    assert register() == PLATFORM


@pytest.mark.parametrize("owner", ["cuda", "rocm", "tpu", "xpu", "cpu"])
def test_a_platform_of_vllms_own_keeps_its_device(monkeypatch, probes, owner):
    monkeypatch.delenv("VLLM_PLUGINS")
    probes[owner] = lambda: f"vllm.platforms.{owner}.Platform"
    assert register() is None


def test_a_probe_that_fails_has_found_nothing(monkeypatch, probes):
    def fails():
        raise RuntimeError("driver not loaded")

    monkeypatch.delenv("VLLM_PLUGINS")
    probes["cuda"] = fails
    assert register() == PLATFORM


@pytest.mark.parametrize("named", ["spyre", "other,spyre"])
def test_named_it_activates_even_beside_an_accelerator(monkeypatch, probes, named):
    monkeypatch.setenv("VLLM_PLUGINS", named)
    probes["cuda"] = lambda: "vllm.platforms.cuda.CudaPlatform"
    assert register() == PLATFORM


@pytest.mark.parametrize("named", ["", "other", "spyre2"])
def test_with_only_others_named_it_stays_out(monkeypatch, probes, named):
    monkeypatch.setenv("VLLM_PLUGINS", named)
    assert register() is None


def test_vllm_itself_chooses_as_registered(monkeypatch, probes):
    from vllm.platforms import resolve_current_platform_cls_qualname as resolve

    monkeypatch.delenv("VLLM_PLUGINS")
    assert resolve() == PLATFORM
    probes["cpu"] = lambda: "vllm.platforms.cpu.CpuPlatform"
    assert resolve() == "vllm.platforms.cpu.CpuPlatform"


def test_loading_the_entry_point_imports_nothing_heavy():
    code = (
        "import sys; from spyre_bench.plugin import register; "
        "print(sorted({'torch', 'vllm', 'fms', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


SAYS = """
import logging
from vllm.config.logging import LoggingConfig
from vllm.logger import configure_logging
from vllm.platforms import current_platform
current_platform.device_name
configure_logging(LoggingConfig(log_level="INFO"))
logging.getLogger("spyre_bench.engine.carried").info("config.json has fields that nobody reads")
"""


def test_what_the_engine_says_is_shown_where_vllms_own_words_are():
    done = subprocess.run([sys.executable, "-c", SAYS], capture_output=True, text=True)
    assert "config.json has fields that nobody reads" in done.stdout + done.stderr, done.stderr
