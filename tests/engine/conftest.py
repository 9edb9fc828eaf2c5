"""Engines are dear to start, so tests share them; torch is pinned to one thread."""

import sys
import types
from contextlib import contextmanager

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """Makes a warmed engine: engine(model_directory, "2,64,8 ...", compile_backend=...)."""
    from spyre_bench.engine.causal_lm import SpyreCausalLM
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.warmup import warm_up
    from spyre_bench.shapes import BucketSet

    made = {}

    def make(directory, buckets, **setting):
        key = (directory, buckets, *sorted(setting.items()))
        if key not in made:
            model = SpyreCausalLM(
                EngineConfig(model_directory=directory, buckets=BucketSet.parse(buckets), **setting)
            )
            warm_up(model, progress=False)
            made[key] = model
        return made[key]

    return make


@pytest.fixture
def fake_sendnn(monkeypatch):
    """A `torch_sendnn` that records its warmup phases and how many compiles fall in each."""
    import torch

    log = []

    @contextmanager
    def warmup_mode():
        log.append("enter")
        yield
        log.append("exit")

    def sendnn(graph, inputs):
        log.append("compile")
        for tensor in inputs:
            dims = getattr(tensor, "_dynamo_static_indices", None)
            if isinstance(tensor, torch.Tensor) and dims is not None:
                log.append("static")

        def run(*args):
            log.append("run")
            return graph(*args)

        return run

    module = types.SimpleNamespace(warmup_mode=warmup_mode)
    monkeypatch.setitem(sys.modules, "torch_sendnn", module)
    torch._dynamo.register_backend(sendnn, name="sendnn")
    yield log
    torch._dynamo.backends.registry._COMPILER_FNS.pop("sendnn")
    torch._dynamo.backends.registry._BACKENDS.pop("sendnn", None)
