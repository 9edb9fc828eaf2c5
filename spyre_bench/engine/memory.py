"""What a bucket needs in bytes, known before anything is loaded or compiled."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import psutil

from spyre_bench.shapes import Bucket, BucketSet

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that memory depends on."""

    weights: int  # parameters, tied ones once
    layers: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    context_length: int

    @classmethod
    def read(cls, directory: Path) -> ModelShape:
        """From config.json and the headers of the safetensors files; loads no weight."""
        config = json.loads((directory / "config.json").read_text())
        heads = config["num_attention_heads"]
        return cls(
            weights=sum(map(_parameters, sorted(directory.glob("*.safetensors")))),
            layers=config["num_hidden_layers"],
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            context_length=config["max_position_embeddings"],
        )

    def weight_bytes(self, dtype: str) -> int:
        return self.weights * ITEM_BYTES[dtype]

    def pass_bytes(self, bucket: Bucket, dtype: str) -> int:
        """KV cache, logits, mask and the activations of one layer's prefill, in bytes."""
        item = ITEM_BYTES[dtype]
        rows, prompt = bucket.batch_size, bucket.prompt_length
        kv = 2 * self.layers * rows * self.kv_heads * bucket.context_length * self.head_dim * item
        logits = rows * self.vocab_size * 4
        mask = rows * prompt * prompt * item
        activations = rows * prompt * (4 * self.hidden_size + 3 * self.intermediate_size) * item
        return kv + logits + mask + activations

    def bucket_bytes(self, bucket: Bucket, dtype: str) -> int:
        """Everything that an engine of this one bucket holds."""
        return self.weight_bytes(dtype) + self.pass_bytes(bucket, dtype)


def _parameters(path: Path) -> int:
    """Elements in a safetensors file: an 8-byte length, then a JSON header of shapes."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            size = 1
            for length in tensor["shape"]:
                size *= length
            total += size
    return total


def check_memory(shape: ModelShape, buckets: BucketSet, dtype: str, limit: int | None) -> int:
    """Bytes that the engine needs, at most `limit` (None: what the machine has free now).

    One bucket runs at a time and they share one cache, so the largest decides. Raises
    ValueError with the bytes needed, the bytes there, and the largest batch that would fit.
    """
    there = psutil.virtual_memory().available if limit is None else limit
    worst = max(buckets, key=lambda bucket: shape.pass_bytes(bucket, dtype))
    needed = shape.bucket_bytes(worst, dtype)
    if needed <= there:
        return needed
    left = there - shape.weight_bytes(dtype)
    a_row = shape.pass_bytes(Bucket(1, worst.prompt_length, worst.new_tokens), dtype)
    remedy = (
        f"the largest batch_size that fits with these lengths is {left // a_row}"
        if left >= a_row
        else "not even batch_size 1 fits: use shorter lengths or a smaller model"
    )
    raise ValueError(
        f"bucket {worst} needs {needed:,} bytes in {dtype} ({shape.weight_bytes(dtype):,} of them "
        f"weights) and there are {there:,}: {remedy}"
    )
