"""Engines are dear to start, so tests share them; torch is pinned to one thread."""

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
