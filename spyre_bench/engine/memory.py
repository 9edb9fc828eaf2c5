"""What a bucket needs in bytes, known before anything is loaded or compiled."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from spyre_bench.checkpoints.weight_files import WeightFiles
from spyre_bench.engine.carried import read_config
from spyre_bench.shapes import Bucket, BucketSet

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SPLIT = re.compile(
    r"\.layers\..*((q|gate|up)_proj\.(weight|bias)|(o|down)_proj\.weight"
    r"|shared_mlp\.(in|out)put_linear\.weight)$"
)
KV_SPLIT = re.compile(r"\.layers\..*(k|v)_proj\.(weight|bias)$")
"""What FMS splits over ranks, by the names of Hugging Face checkpoints."""

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that memory depends on."""

    weights: int  # parameters, tied ones once
    split_weights: int  # of these the layers' that are split over the ranks, keys' and values' not
    kv_weights: int  # those that make keys and values: split too, but to no less than one head
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    context_length: int

    @classmethod
    def read(cls, directory: Path) -> ModelShape:
        """Of the model in a directory."""
        return cls.of(read_config(directory), WeightFiles(directory))

    @classmethod
    def of(cls, config: PretrainedConfig, files: WeightFiles) -> ModelShape:
        """From a config and the headers of the files; loads no weight."""
        sizes = files.elements
        return cls(
            weights=sum(sizes.values()),
            split_weights=sum(size for name, size in sizes.items() if SPLIT.search(name)),
            kv_weights=sum(size for name, size in sizes.items() if KV_SPLIT.search(name)),
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim(config),
            hidden_size=config.hidden_size,
            intermediate_size=mlp_width(config),
            vocab_size=config.vocab_size,
            context_length=config.max_position_embeddings,
        )

    def rank_kv_heads(self, tp: int) -> int:
        """KV heads on each of `tp` ranks; FMS gives several ranks the same head where there are
        fewer than ranks."""
        return max(1, self.kv_heads // tp)

    def weight_bytes(self, dtype: str, tp: int = 1) -> int:
        """Of one of `tp` ranks: its share of the layers, and the rest whole."""
        whole = self.weights - self.split_weights - self.kv_weights
        kv = self.kv_weights * self.rank_kv_heads(tp) // self.kv_heads
        return (whole + self.split_weights // tp + kv) * ITEM_BYTES[dtype]

    def pass_bytes(self, bucket: Bucket, dtype: str, tp: int = 1) -> int:
        """KV cache, logits, mask and the activations of one layer's prefill, in bytes a rank."""
        item = ITEM_BYTES[dtype]
        rows, prompt = bucket.batch_size, bucket.prompt_length
        a_slot = 2 * self.layers * self.rank_kv_heads(tp) * self.head_dim * item
        kv = rows * bucket.context_length * a_slot
        logits = rows * self.vocab_size * 4
        mask = rows * prompt * prompt * item
        inner = self.intermediate_size // tp
        activations = rows * prompt * (4 * self.hidden_size + 3 * inner) * item
        return kv + logits + mask + activations

    def bucket_bytes(self, bucket: Bucket, dtype: str, tp: int = 1) -> int:
        """Everything that a rank of an engine of this one bucket holds."""
        return self.weight_bytes(dtype, tp) + self.pass_bytes(bucket, dtype, tp)


def head_dim(config: PretrainedConfig) -> int:
    own = getattr(config, "head_dim", None)
    return own or config.hidden_size // config.num_attention_heads


def mlp_width(config: PretrainedConfig) -> int:
    """A dense Granite 4 keeps it under the name of shared experts."""
    return getattr(config, "shared_intermediate_size", None) or config.intermediate_size


def check_memory(
    shape: ModelShape, buckets: BucketSet, dtype: str, limit: int | None, tp: int = 1
) -> int:
    """Bytes that each of `tp` ranks needs, at most `limit`, which is a rank's (None: its share of
    what the machine has free now).

    One bucket runs at a time and they share one cache, so the largest decides. Raises
    ValueError with the bytes needed, the bytes there, and the largest batch that would fit.
    """
    there = psutil.virtual_memory().available // tp if limit is None else limit
    worst = max(buckets, key=lambda bucket: shape.pass_bytes(bucket, dtype, tp))
    needed = shape.bucket_bytes(worst, dtype, tp)
    if needed <= there:
        return needed
    left = there - shape.weight_bytes(dtype, tp)
    a_row = shape.pass_bytes(Bucket(1, worst.prompt_length, worst.new_tokens), dtype, tp)
    remedy = (
        f"the largest batch_size that fits with these lengths is {left // a_row}"
        if left >= a_row
        else "not even batch_size 1 fits: use shorter lengths or a smaller model"
    )
    each = f" on each of {tp} ranks" if tp > 1 else ""
    raise ValueError(
        f"bucket {worst} needs {needed:,} bytes in {dtype}{each} "
        f"({shape.weight_bytes(dtype, tp):,} of them weights) and there are {there:,}: {remedy}"
    )
