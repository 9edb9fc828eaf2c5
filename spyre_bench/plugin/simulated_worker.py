"""The worker of a deployment that nobody has: any number of cards in one process, no weights, and
passes that take the time that a cost says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from vllm.config import ModelConfig
from vllm.logger import init_logger
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.utils.torch_utils import set_random_seed

from spyre_bench.cost.bucket_cost import price
from spyre_bench.engine.compiled_model import EngineConfig
from spyre_bench.engine.warmup import largest_first, with_bar
from spyre_bench.model_sizes import ModelSizes
from spyre_bench.pass_log import ShapeWarmup, Warmup
from spyre_bench.plugin.clock import SYSTEM, VirtualClock, note_clock
from spyre_bench.plugin.config import SpyreConfig
from spyre_bench.plugin.simulated_model import SimulatedCausalLM, SimulatedPagedCausalLM, Voice
from spyre_bench.plugin.simulated_runner import (
    SimulatedContinuousModelRunner,
    SimulatedModelRunner,
)
from spyre_bench.plugin.worker import SpyreWorker

logger = init_logger("vllm.spyre_bench.worker")

WORD = re.compile(r"[Ġ▁][a-z]{2,}")
"""A token that is a word with a space before it, as byte-level and sentence-piece vocabularies
write it."""
WORDS = 1000
"""The first so many of them: those that a tokenizer learned first are common ones."""


class SimulatedWorker(SpyreWorker):
    def init_device(self) -> None:
        self.device = torch.device("cpu")
        self.spyre_config = SpyreConfig.of(self.vllm_config)
        self.clock = VirtualClock() if self.spyre_config.clock == "virtual" else SYSTEM
        note_clock(self.vllm_config, self.clock)
        set_random_seed(self.model_config.seed)

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        config, source = self.spyre_config, self.spyre_config.cost
        directory = Path(self.model_config.model)
        sizes = ModelSizes.of(self.model_config.hf_config.to_dict(), directory.name)
        engine = EngineConfig(
            model_directory=directory,
            buckets=config.buckets,
            shapes=config.shapes,
            compile_backend="eager",
            rank=self.spyre_rank,
        )
        vocab_size = self.model_config.get_vocab_size()
        voice = Voice(words_of(self.model_config), vocab_size)
        parts = (engine, sizes, voice, self.clock)
        runner: type[SimulatedModelRunner]
        if config.shapes is None:
            assert config.buckets is not None
            self.model = SimulatedCausalLM(*parts, price(config.buckets, source))
            runner = SimulatedModelRunner
        else:
            self.model = SimulatedPagedCausalLM(*parts, source.of_shapes(config.shapes))
            runner = SimulatedContinuousModelRunner
        logger.info("Nothing is computed: passes take the seconds of %s.", source.label)
        self._make_runner(runner)

    def _warm_up(self) -> list[Warmup] | list[ShapeWarmup]:
        compiled, cold = largest_first(self.spyre_config.compiled), self.spyre_config.warmup
        rows = [self.model.warm_up(shape, cold) for shape in with_bar(compiled, cold)]
        self.model.rest()
        if isinstance(self.clock, VirtualClock):
            self.clock.now_s = 0.0  # the engine is ready
        return rows


def words_of(model: ModelConfig) -> list[int]:
    """Tokens to say: common words where the tokenizer has some, else whatever is not special."""
    vocab_size = model.get_vocab_size()
    if model.skip_tokenizer_init:
        return list(range(vocab_size))
    tokenizer = cached_tokenizer_from_config(model)
    ends = model.try_get_generation_config().get("eos_token_id") or ()
    special = {*tokenizer.all_special_ids, *((ends,) if isinstance(ends, int) else ends)}
    plain = [token for token in range(min(vocab_size, len(tokenizer))) if token not in special]
    words = [token for token, text in _texts(tokenizer, plain) if WORD.fullmatch(text)]
    return words[:WORDS] or plain


def _texts(tokenizer, tokens: list[int]) -> Iterable[tuple[int, str]]:
    return zip(tokens, map(str, tokenizer.convert_ids_to_tokens(tokens)), strict=True)
