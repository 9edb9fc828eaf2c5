"""An error as the one sentence that a user reads, whatever its class."""

from __future__ import annotations

FOR_PEOPLE = (ValueError, OSError)
"""Their text is written for whoever reads it; that of any other class needs its name before it."""

EXTRAS = {
    "engine": (
        *("torch", "fms", "transformers", "safetensors", "huggingface_hub", "filelock"),
        *("gguf", "psutil"),
    ),
    "vllm": ("vllm",),
}
"""What installs packages that only a part of the commands needs; `notebooks` all others."""


def needs(package: str) -> str:
    """Of whoever cannot go on without a package: which, and what installs it."""
    extra = next((extra for extra, of in EXTRAS.items() if package in of), "notebooks")
    return (
        f"needs the package {package}: run make setup in a clone, or pip install "
        f"'spyre-bench[{extra}]'"
    )


def sentence(error: BaseException) -> str:
    """What went wrong, on one line."""
    text = " ".join(_said(error).split())
    if isinstance(error, FOR_PEOPLE) and text:
        return text
    kind = type(error).__name__
    return f"{kind}: {text}" if text else kind


def _said(error: BaseException) -> str:
    """Of the system's errors their words and the file, without the number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    return str(error)


def unexpected(error: BaseException) -> bool:
    """Whether it is a fault of ours rather than of what it was given."""
    return not isinstance(error, FOR_PEOPLE)
