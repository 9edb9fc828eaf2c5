"""A model's tokenizer as a counter of tokens, of conversations with their template where it has
one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spyre_bench.checkpoints.find import model_directory


class ModelTokenizer:
    """The tokenizer of a model: a directory (weights need not be in it), a hub id or smollm2.

    ValueError or OSError where there is none.
    """

    def __init__(self, name: str):
        directory = Path(name).expanduser()
        found = directory if directory.is_dir() else model_directory(name)
        try:
            from transformers import AutoTokenizer
        except ModuleNotFoundError as missing:
            raise ValueError(
                f"tokenizer {name!r} needs the package {missing.name}: run make setup in a clone, "
                f"or pip install 'spyre-bench[engine]'"
            ) from missing
        self._tokenizer: Any = AutoTokenizer.from_pretrained(found)
        template = "its chat template included"
        if self._tokenizer.chat_template is None:
            template = "WITHOUT a chat template, for it has none: a server's prompts are longer"
        self.note = f"tokens counted by {name}, {template}"

    def prompt_tokens(self, messages: Sequence[Mapping[str, str]]) -> int:
        """Of a conversation so far, with the words that ask for an answer."""
        if self._tokenizer.chat_template is None:
            return self.text_tokens("\n".join(message["content"] for message in messages))
        text = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        return self.text_tokens(text)

    def text_tokens(self, text: str) -> int:
        """Of a text alone, no token added around it."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))
