"""A model's directory without weights, for who computes nothing: a configuration and the embedded
model's tokenizer."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spyre_bench.checkpoints.find import cache_directory, embedded_directory, made_once

TOKENIZER_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def config_only_directory(name: str, fields: Mapping[str, Any]) -> Path:
    """Writes a Hugging Face directory of a `config.json` with these fields and SmolLM2's tokenizer
    into the cache directory, once; returns it. Texts have as many tokens as SmolLM2 makes of
    them."""
    source = embedded_directory()
    embedded = json.loads((source / "config.json").read_text())
    ends = {field: embedded[field] for field in TOKENIZER_FIELDS if field in embedded}
    config = json.dumps(dict(fields) | ends | {"dtype": "float32"}, indent=1)
    of = hashlib.sha256(f"{source.name} {config}".encode()).hexdigest()[:8]

    def write(directory: Path) -> None:
        for path in source.iterdir():
            if path.suffix in (".json", ".jinja", ".txt") and not path.name.endswith(".index.json"):
                shutil.copyfile(path, directory / path.name)
        (directory / "config.json").write_text(config)

    return made_once(cache_directory() / f"{name}-{of}-without-weights", write)
