"""From a model's name to a directory that FMS, transformers and vLLM all read."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

EMBEDDED = "smollm2"
# What the three readers need of a hub repository; anything in a subfolder is for others.
HUB_FILES = ["*.json", "*.jinja", "model*.safetensors", "tokenizer.model", "merges.txt"]
HUB_TIMEOUT_S = 10
TOKENIZERS = ["tokenizer.json", "tokenizer.model", "vocab.json"]


def model_directory(name: str = EMBEDDED, *, tokenizer: bool = True) -> Path:
    """The directory of a model: `smollm2`, a local Hugging Face directory, or a hub id. Whoever
    only computes needs no `tokenizer` in it.

    The embedded model is unpacked into `cache_directory()` at the first call. ValueError or
    OSError, in one line with the remedy, where the model is missing, incomplete or unreachable.
    """
    try:
        if name == EMBEDDED:
            return embedded_directory()
        path = Path(os.path.expanduser(name))
        if path.exists():
            remedy = f"name another directory, a hub id, or {EMBEDDED!r}"
            return checked(path.absolute(), remedy, tokenizer)
        return checked(path := hub_directory(name), f"remove {path} to fetch it again", tokenizer)
    except ModuleNotFoundError as missing:
        raise ValueError(
            f"model {name!r} needs the package {missing.name}: run make setup in a clone, or pip "
            f"install 'spyre-bench[engine]'"
        ) from missing


def cache_directory() -> Path:
    """SPYRE_BENCH_CACHE, else `spyre_bench` in the user's XDG cache. It need not exist yet.

    Raises ValueError where neither names a place and the user has no home."""
    try:
        if own := os.environ.get("SPYRE_BENCH_CACHE"):
            return Path(own).expanduser().absolute()
        xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
        # the XDG specification: an unset, empty or relative path means the default
        return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "spyre_bench"
    except RuntimeError as error:  # HOME is not set, and the table of users has no entry
        raise ValueError(
            f"user {os.geteuid()} has no home directory for a cache: set SPYRE_BENCH_CACHE (or "
            f"HOME) to a directory that it can write to"
        ) from error


def checked(directory: Path, remedy: str, tokenizer: bool = True) -> Path:
    """The directory itself; ValueError naming what a Hugging Face directory would also hold."""
    if problem := missing_from(directory, tokenizer):
        raise ValueError(f"{directory} is no Hugging Face model directory: {problem}; {remedy}")
    return directory


def missing_from(directory: Path, tokenizer: bool = True) -> str | None:
    """What the directory lacks, or None. Reads headers only, so it is quick for any size."""
    if not directory.is_dir():
        return "it is not a directory"
    if not is_json(directory / "config.json"):
        return "config.json is missing or no JSON"
    if tokenizer and not any((directory / name).is_file() for name in TOKENIZERS):
        return f"a tokenizer is missing ({', '.join(TOKENIZERS)})"
    from spyre_bench.checkpoints.weight_files import WeightFiles

    try:
        return None if WeightFiles(directory).shapes else "its files hold no weights"
    except ValueError as error:
        return str(error).removeprefix(f"{directory}: ")


def is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text()), dict)
    except (FileNotFoundError, ValueError):
        return False


def hub_directory(name: str) -> Path:
    """The hub's snapshot of `name` in huggingface_hub's own cache, fetched if it is not whole."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub import errors as hub

    files = {"allow_patterns": HUB_FILES, "ignore_patterns": ["*/*"]}
    try:
        return Path(snapshot_download(name, **files, local_files_only=True))
    except hub.HFValidationError as error:
        raise ValueError(
            f"{name!r} is neither a directory that exists, nor a hub id, nor {EMBEDDED!r}"
        ) from error
    except hub.LocalEntryNotFoundError:
        pass
    try:
        # the look-up within snapshot_download has no time limit: ask once with one
        HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
        return Path(snapshot_download(name, **files))
    except hub.GatedRepoError as error:
        raise OSError(
            f"{name} is gated: accept its terms on its hub page, then run `hf auth login`"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise ValueError(
            f"{name} is no directory, and the hub knows no such model or hides it: check the "
            "spelling, or run `hf auth login` if it is private"
        ) from error
    except Exception as error:  # the network's errors are not all OSErrors
        if getattr(error, "errno", None) == errno.ENOSPC:
            remedy = "make room, or name another place for the hub's cache by HF_HOME"
        else:
            remedy = f"check the network, or give a local directory or {EMBEDDED!r}"
        raise OSError(
            f"{name} is no directory, and fetching it from the hub failed "
            f"({first_line(error)}): {remedy}"
        ) from error


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def embedded_directory() -> Path:
    """The embedded model's directory, unpacked first where it is not there or not whole.

    One process unpacks, others wait for it. What is half-written never bears the final name.
    """
    from spyre_bench.checkpoints import embedded

    cache = cache_directory()
    target = cache / embedded.DIRECTORY
    if missing_from(target) is None:
        return target
    from filelock import FileLock

    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{target.name}.lock"):
            if missing_from(target) is not None:
                unpack_into(target)
    except OSError as error:
        raise OSError(
            f"cannot unpack the embedded model into {cache} ({first_line(error)}): it needs "
            f"{embedded.UNPACKED_BYTES / 1e6:.0f} MB there; make room, or name another place by "
            "SPYRE_BENCH_CACHE"
        ) from error
    return target


def made_once(target: Path, make: Callable[[Path], object]) -> Path:
    """`target`, which `make(directory)` fills the first time: one process does, others wait for it.
    What is half-written never bears the final name."""
    if target.exists():
        return target
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        FileLock(target.with_name(f"{target.name}.lock")),
        tempfile.TemporaryDirectory(dir=target.parent) as scratch,
    ):
        if not target.exists():
            half_written = Path(scratch) / "model"
            half_written.mkdir()
            make(half_written)
            half_written.replace(target)
    return target


def unpack_into(target: Path) -> None:
    """Unpack beside `target`, then rename. To be called under the lock: the name is a fixed one."""
    from safetensors import SafetensorError

    from spyre_bench.checkpoints import embedded

    source = embedded.source_file()
    half_written = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(half_written, ignore_errors=True)  # of a process that was killed
    shutil.rmtree(target, ignore_errors=True)  # found damaged
    try:
        half_written.mkdir()
        embedded.unpack(source, half_written)
        half_written.replace(target)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(half_written, ignore_errors=True)
