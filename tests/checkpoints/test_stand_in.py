"""A stand-in has the original's sizes and tokenizer, and heads that divide."""

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spyre_bench.checkpoints.find import made_once
from spyre_bench.checkpoints.stand_in import stand_in
from spyre_bench.model_sizes import ModelSizes

pytestmark = pytest.mark.engine


def test_a_stand_in_differs_from_the_original_in_its_heads_alone(smollm2, tmp_path):
    target = stand_in(smollm2, 12, 6, tmp_path / "model")
    was, now = (
        ModelSizes.of(json.loads((directory / "config.json").read_text()))
        for directory in (smollm2, target)
    )
    assert (now.heads, now.kv_heads, now.head_dim) == (12, 6, 48)
    for name in ("layers", "hidden_size", "intermediate_size", "vocab_size", "context_length"):
        assert getattr(now, name) == getattr(was, name), name
    assert (target / "tokenizer.json").read_bytes() == (smollm2 / "tokenizer.json").read_bytes()


def test_without_a_target_it_is_made_once(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("SPYRE_BENCH_CACHE", str(tmp_path))
    made = stand_in(tiny_llama, 6, 3)
    (made / "mark").touch()
    assert stand_in(tiny_llama, 6, 3) == made
    assert (made / "mark").exists()
    assert json.loads((made / "config.json").read_text())["num_key_value_heads"] == 3
    copy = tmp_path / "elsewhere" / tiny_llama.name
    shutil.copytree(tiny_llama, copy)
    of_copy = stand_in(copy, 6, 3)
    assert of_copy != made  # another model may have the name
    config = copy / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 1}))
    assert stand_in(copy, 6, 3) != of_copy  # or have come to the same place


def test_who_comes_second_waits_and_takes_what_the_first_one_made(tmp_path):
    target, writing = tmp_path / "cache" / "model", threading.Event()

    def made(name: str) -> Path:
        def write(directory: Path) -> None:
            writing.set()
            time.sleep(0.3)  # the other one begins meanwhile
            (directory / name).touch()

        return made_once(target, write)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(made, "first")
        assert writing.wait(10)
        second = pool.submit(made, "second")
        assert first.result() == second.result() == target
    assert [path.name for path in target.iterdir()] == ["first"]


@pytest.mark.parametrize(("heads", "kv_heads"), [(7, 7), (9, 2), (64, 8)])
def test_heads_that_cannot_be_are_refused(smollm2, heads, kv_heads):
    with pytest.raises(ValueError, match="do not divide a hidden size of 576: use a divisor of"):
        stand_in(smollm2, heads, kv_heads)
