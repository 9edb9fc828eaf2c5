"""A model's directory without weights, for who computes nothing: a configuration and the embedded
model's tokenizer."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spyre_bench.checkpoints.find import cache_directory, embedded_directory

TOKENIZER_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def config_only_directory(name: str, fields: Mapping[str, Any]) -> Path:
    """Writes a Hugging Face directory of a `config.json` with these fields and SmolLM2's tokenizer
    into the cache directory; returns it. Texts have as many tokens as SmolLM2 makes of them."""
    source, target = embedded_directory(), cache_directory() / f"{name}-without-weights"
    embedded = json.loads((source / "config.json").read_text())
    ends = {field: embedded[field] for field in TOKENIZER_FIELDS if field in embedded}
    config = dict(fields) | ends | {"dtype": "float32"}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        half_written = Path(scratch) / "model"
        half_written.mkdir()
        for path in source.iterdir():
            if path.suffix in (".json", ".jinja", ".txt") and not path.name.endswith(".index.json"):
                shutil.copyfile(path, half_written / path.name)
        (half_written / "config.json").write_text(json.dumps(config, indent=1))
        if target.exists():
            for path in half_written.iterdir():  # another server may be reading the directory
                os.replace(path, target / path.name)
        else:
            os.replace(half_written, target)
    return target
