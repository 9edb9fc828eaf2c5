"""Files that people bring and files that we leave: read with the file's name in every refusal,
written in one step, known by their content, and in the hands of one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml  # type: ignore[import-untyped]

import spyre_bench

# --- what people bring ----------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """A text file; ValueError with its name for bytes that are no text."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from error


def parse_json(text: str | bytes, name: str | Path) -> Any:
    """JSON, called `name` in the ValueError for what is none."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{name}: JSON nested too deeply to be read") from error
    except ValueError as error:
        raise ValueError(f"{name}: not JSON: {error}") from error


class TextDates(yaml.SafeLoader):  # type: ignore[misc]
    """YAML whose dates are text. Libraries of notebooks change PyYAML's own loader to that for the
    whole process; with a loader of our own a file reads the same before and after."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def parse_yaml(text: str, name: str | Path) -> Any:
    """YAML, called `name` in the ValueError for what is none."""
    try:
        return yaml.load(text, TextDates)
    except RecursionError as error:
        raise ValueError(f"{name}: YAML nested too deeply to be read") from error
    # a mapping with a list as a key is a TypeError
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: not YAML: {' '.join(str(error).split())}") from error


def read_json(path: Path) -> Any:
    return parse_json(read_text(path), path)


def read_yaml(path: Path) -> Any:
    return parse_yaml(read_text(path), path)


# --- what we leave --------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` when the block ends without an error: an
    interruption leaves the old one or the new one. Raises ValueError for a folder or a device."""
    _require_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.filename == str(partial):  # which nobody has heard of
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        partial.unlink(missing_ok=True)


def require_place(path: Path) -> None:
    """Before the work whose result `path` is to take: ValueError where it cannot be written."""
    _require_file(path)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}): name a file in a folder that you may "
            f"write to"
        ) from error


def _require_file(path: Path) -> None:
    """A device would be gone, with a file in its place."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a device or a pipe, and not a file: name a file")


def replace_text(path: Path, text: str) -> None:
    """Writes the file in one step, by `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Nobody else may write `path`, a file or a folder, until the block ends; ValueError with the
    process that does where there is one. The system lifts the lock of a process that was killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    descriptor = _locked(lock, path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is still ours
        os.close(descriptor)


def _locked(lock: Path, path: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                # Its last holder may have removed the file that we opened and have now locked.
                if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                    return descriptor
            os.close(descriptor)
        except OSError as error:
            holder = os.read(descriptor, 1000).decode(errors="replace") or "unknown"
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            raise ValueError(
                f"{path} is in use by process {holder}: wait until it has ended, or name another"
            ) from error


# --- what a result depends on ---------------------------------------------------------------------


def digest(*parts: Any) -> str:
    """Of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def content(value: Any) -> str | None:
    """The digest of the file that `value` names, such as a trace or a cost table; of a folder, such
    as a model's, that of its files' names, sizes and times; None where it names none."""
    try:
        path = Path(os.path.expanduser(value))  # as a model's folder is read
        if path.is_file():
            return hashlib.sha256(path.read_bytes()).hexdigest()
        return digest(_listing(path)) if value and path.is_dir() else None
    except (TypeError, ValueError, OSError):
        return None


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    stats = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def contents(text: Any) -> list[str | None]:
    """The digests of the files and folders that a text may name: the whole of it, each word, and
    what stands in a word behind an @ ("@shapes.json") or the first colon ("4:result.json")."""
    words = str(text).split()
    behind = [part for word in words for part in (word[1:], word.partition(":")[2]) if part]
    return [content(name) for name in (text, *words, *behind)]


def code() -> str:
    """The digest of the whole package as it is on disk, wherever this file is in it: a commit would
    miss what is edited since."""
    package = Path(str(spyre_bench.__file__)).parent
    files = sorted(path for path in package.rglob("*") if path.suffix not in ("", ".pyc"))
    return digest([(str(path.relative_to(package)), content(path)) for path in files])


def commit() -> dict[str, Any]:
    """Commit of the clone that this package runs from, and whether it differs from it (`dirty`);
    None where it does not run from a clone."""
    package = Path(spyre_bench.__file__)

    def git(*words: str) -> str:
        command = ["git", "-C", str(package.parent), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return ""

    if not git("ls-files", package.name):  # installed, perhaps inside another project's clone
        return {"commit": None, "dirty": None}
    return {
        "commit": git("rev-parse", "HEAD").strip(),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
    }
