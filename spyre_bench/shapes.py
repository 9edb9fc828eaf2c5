"""Buckets: the static shapes that an engine compiles, and which requests fit them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STICK_TOKENS = 64
"""Prompt lengths are multiples of this: a Spyre stick is 128 bytes, 64 fp16 elements."""

LARGEST = 2**31 - 1  # of a bucket's sizes, as of a request's

# Why no bucket takes a request, in the words of results and metrics.
REJECTIONS = ("prompt_too_long", "max_tokens_too_large", "no_bucket_takes_both")

# Upstream's names, in the order of a bucket, and its defaults: one bucket, for a first try.
BUCKET_LISTS = {
    "VLLM_SPYRE_WARMUP_BATCH_SIZES": "1",
    "VLLM_SPYRE_WARMUP_PROMPT_LENS": "64",
    "VLLM_SPYRE_WARMUP_NEW_TOKENS": "20",
}


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """One compiled shape: up to `batch_size` prompts padded to `prompt_length` tokens, each
    answered with up to `new_tokens` tokens."""

    batch_size: int
    prompt_length: int
    new_tokens: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(
                    f"bucket {name} {value!r} is not a whole number: write batch_size, "
                    f"prompt_length, new_tokens, for example 4,64,32"
                )
            if value > LARGEST:
                raise ValueError(f"bucket {name} {value!s:.20} is above {LARGEST:,}: use less")
        if self.batch_size < 1:
            raise ValueError(f"bucket batch_size {self.batch_size} is below 1: use 1 or more")
        if self.prompt_length < 1 or self.prompt_length % STICK_TOKENS:
            above = max(1, -(-self.prompt_length // STICK_TOKENS)) * STICK_TOKENS
            raise ValueError(
                f"bucket prompt_length {self.prompt_length} is not a positive multiple of "
                f"{STICK_TOKENS} (the card's stick): use {above}"
            )
        if self.new_tokens < 2:
            raise ValueError(
                f"bucket new_tokens {self.new_tokens} is below 2 (a bucket compiles one prefill "
                f"and one decode): use 2 or more"
            )

    @classmethod
    def parse(cls, value: Bucket | str | Sequence[int]) -> Bucket:
        """A bucket from `"4,64,32"`, `"4x64x32"` or `[4, 64, 32]`."""
        if isinstance(value, Bucket):
            return value
        parts = value.lower().replace("x", ",").split(",") if isinstance(value, str) else value
        try:
            numbers = [int(part) if isinstance(part, str) else part for part in parts]
            batch_size, prompt_length, new_tokens = numbers
        except (TypeError, ValueError) as error:  # no sequence, no whole number, not three of them
            raise ValueError(
                f"bucket {value!r} is not three whole numbers: write batch_size, prompt_length, "
                f"new_tokens, for example 4,64,32"
            ) from error
        return cls(batch_size, prompt_length, new_tokens)

    @property
    def context_length(self) -> int:
        """Slots of the KV cache, in tokens per row: prompt and output."""
        return self.prompt_length + self.new_tokens

    def fits(self, prompt_tokens: int, max_tokens: int) -> bool:
        return prompt_tokens <= self.prompt_length and max_tokens <= self.new_tokens

    def dominates(self, other: Bucket) -> bool:
        """Whether it takes every batch that `other` takes, being another bucket."""
        return self != other and all(
            getattr(self, name) >= getattr(other, name) for name in self.__slots__
        )

    def __str__(self) -> str:
        return f"{self.batch_size},{self.prompt_length},{self.new_tokens}"


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"buckets {text!r} are not JSON: write [[4, 64, 32], [2, 256, 64]]"
        ) from error


def listed(text: str, name: str, example: str) -> list[Any]:
    """What a file has under a name, `"@shapes.json"`, as `spyre-bench tune --out` writes it; or the
    list that it is. ValueError for a file that holds neither."""
    path = Path(text.strip()[1:]).expanduser()
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{name} @{path}: {error.strerror}: name a file of {name}") from error
    except ValueError as error:
        raise ValueError(f"{name} @{path}: not JSON: {error}") from error
    found = found.get(name) if isinstance(found, dict) else found
    if not isinstance(found, list):
        raise ValueError(
            f'{name} @{path}: it holds no list of {name}: write {{"{name}": [{example}]}}'
        )
    return found


def _whole_numbers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"{name}={text!r} is not a list of whole numbers: write, for example, {name}=64,128"
        ) from error


@dataclass(frozen=True, repr=False)
class BucketSet:
    """The buckets of one engine: immutable, without duplicates, in ascending order."""

    buckets: tuple[Bucket, ...]

    def __post_init__(self) -> None:
        if not self.buckets:
            raise ValueError("no bucket given: an engine needs at least one, for example 4,64,32")
        object.__setattr__(self, "buckets", tuple(sorted(set(self.buckets))))

    @classmethod
    def parse(cls, values: str | Iterable[Bucket | str | Sequence[int]]) -> BucketSet:
        """Buckets from `"4,64,32 2,256,64"`, from JSON, `"[[4, 64, 32], [2, 256, 64]]"`, from a
        file of them, `"@shapes.json"`, or from a list of whatever `Bucket.parse` reads."""
        if isinstance(values, str) and values.strip().startswith("@"):
            values = listed(values, "buckets", "[4, 64, 32]")
        if isinstance(values, str):
            values = _json(values) if "[" in values else values.replace(";", " ").split()
        return cls(tuple(Bucket.parse(value) for value in values))

    @classmethod
    def from_lists(cls, variables: Mapping[str, str]) -> BucketSet:
        """Buckets in the form of existing Spyre deployments: three lists in environment variables,
        read in parallel. Missing ones have upstream's defaults."""
        lists = {
            name: _whole_numbers(name, variables.get(name, default))
            for name, default in BUCKET_LISTS.items()
        }
        if len({len(numbers) for numbers in lists.values()}) > 1:
            lengths = ", ".join(f"{name} has {len(numbers)}" for name, numbers in lists.items())
            raise ValueError(
                f"the lists of buckets are of unequal length: {lengths}; give each the same number "
                f"of values, one for every bucket"
            )
        return cls.parse(zip(*lists.values(), strict=True))

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self.buckets)

    def __len__(self) -> int:
        return len(self.buckets)

    def __str__(self) -> str:
        return " ".join(str(bucket) for bucket in self)

    def __repr__(self) -> str:
        return f"BucketSet.parse({str(self)!r})"

    def _repr_html_(self) -> str:
        heads = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in Bucket.__slots__)
        rows = (f"<tr><td>{str(it).replace(',', '</td><td>')}</td></tr>" for it in self)
        return f"<table><tr>{heads}</tr>{''.join(rows)}</table>"

    @property
    def max_batch_size(self) -> int:
        return max(bucket.batch_size for bucket in self)

    @property
    def max_prompt_length(self) -> int:
        return max(bucket.prompt_length for bucket in self)

    @property
    def max_context_length(self) -> int:
        return max(bucket.context_length for bucket in self)

    def fitting(self, prompt_tokens: int, max_tokens: int) -> tuple[Bucket, ...]:
        """The buckets that take such a request, in ascending order."""
        return tuple(bucket for bucket in self if bucket.fits(prompt_tokens, max_tokens))

    def max_new_tokens(self, prompt_tokens: int) -> int:
        """The most output tokens for such a prompt; 0 where no bucket takes the prompt."""
        return max((b.new_tokens for b in self if prompt_tokens <= b.prompt_length), default=0)

    def nearest(self, prompt_tokens: int, max_tokens: int) -> tuple[Bucket, ...]:
        """The three buckets that miss such a request by the fewest tokens, best first."""

        def missing(bucket: Bucket) -> tuple[int, Bucket]:
            return (
                max(0, prompt_tokens - bucket.prompt_length)
                + max(0, max_tokens - bucket.new_tokens),
                bucket,
            )

        return tuple(sorted(self, key=missing)[:3])

    def rejection(self, prompt_tokens: int, max_tokens: int) -> str | None:
        """Why no bucket takes such a request, one of `REJECTIONS`; None where one does."""
        if self.fitting(prompt_tokens, max_tokens):
            return None
        if prompt_tokens > self.max_prompt_length:
            return REJECTIONS[0]
        return REJECTIONS[1 if max_tokens > self.max_new_tokens(0) else 2]

    def require_fit(self, prompt_tokens: int, max_tokens: int) -> None:
        """Raises ValueError, with the nearest buckets and the bucket that would admit it, for a
        request that no bucket takes."""
        if self.fitting(prompt_tokens, max_tokens):
            return
        prompt_length = -(-max(prompt_tokens, 1) // STICK_TOKENS) * STICK_TOKENS
        admitting = Bucket(1, prompt_length, max(max_tokens, 2))
        nearest = ", ".join(str(bucket) for bucket in self.nearest(prompt_tokens, max_tokens))
        raise ValueError(
            f"no bucket fits prompt_tokens={prompt_tokens} with max_tokens={max_tokens}; the "
            f"nearest buckets (batch_size,prompt_length,new_tokens) are {nearest}. Lower "
            f"max_tokens, shorten the prompt, or add a bucket such as "
            f"[{admitting.batch_size}, {admitting.prompt_length}, {admitting.new_tokens}] to "
            f'additional_config["spyre"]["buckets"] (VLLM_SPYRE_WARMUP_PROMPT_LENS, '
            f"_NEW_TOKENS and _BATCH_SIZES) and start again"
        )
