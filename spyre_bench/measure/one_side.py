"""One side of a paired measurement: an engine that runs a batch of every bucket for each line that
it reads, and answers with the seconds of their passes as a line of JSON.

`python -m spyre_bench.measure.one_side SETTING`: a JSON object of `buckets` and what is to differ
from `DEFAULTS`. `in_turns` starts it by its path, with the checkout that is measured first on the
path of modules; so it asks of the package only what earlier checkouts have too.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from spyre_bench.checkpoints.find import model_directory
from spyre_bench.engine.causal_lm import SpyreCausalLM
from spyre_bench.engine.compiled_model import EngineConfig
from spyre_bench.engine.warmup import warm_up
from spyre_bench.shapes import Bucket, BucketSet

DEFAULTS = {"model": "smollm2", "dtype": "float32", "threads": 1}
DEFAULTS |= {"compile_backend": "inductor", "compile_scope": "layer"}
DECODES = 5  # passes behind a figure


def main(setting: dict) -> None:
    setting = DEFAULTS | setting
    torch.set_num_threads(setting.pop("threads"))
    directory = model_directory(setting.pop("model"))
    buckets = BucketSet.parse(setting.pop("buckets"))
    with contextlib.redirect_stdout(sys.stderr):  # answers alone are on stdout
        model = SpyreCausalLM(EngineConfig(model_directory=directory, buckets=buckets, **setting))
        warm_up(model, progress=False)
    for _ in sys.stdin:
        figures = [time_batch(model, bucket) for bucket in buckets]
        print(json.dumps({k: v for one in figures for k, v in one.items()}), flush=True)


def time_batch(model: SpyreCausalLM, bucket: Bucket) -> dict[str, float]:
    """Of a full batch's prefill, and the median of its first decode passes: seconds by the clock
    (`_s`), and of this process alone (`_cpu_s`), which others that keep the machine busy hardly
    change, and which waiting is no part of."""
    prompts = [[1] * bucket.prompt_length] * bucket.batch_size
    steps = min(DECODES, bucket.new_tokens - 1)
    prefill = [seconds(lambda: model.prefill(bucket, prompts))]
    decode = [seconds(lambda: model.decode([1] * bucket.batch_size)) for _ in range(steps)]
    return {
        f"{bucket} {kind}_{unit}": float(value)
        for kind, taken in (("prefill", prefill), ("decode", decode))
        for unit, value in zip(("s", "cpu_s"), np.median(taken, axis=0), strict=True)
    }


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of this process."""
    clock_s, process_s = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock_s, time.process_time() - process_s


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
