"""Compiled code kept between runs: Inductor's cache directory as one archive, whose first member,
the manifest, says what it was made for and the checksum of every file.

torch's own `save_cache_artifacts` leaves the C++ compiler's output out, so that a fresh host
would run g++ again; the whole directory has it in.

Only `require_precompiled` lets an artefact decide whether an engine starts: else whatever is wrong
with it, or with the directory, costs a compilation and is a warning.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import shutil
import tarfile
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor import config as inductor_config
from torch._inductor.runtime.cache_dir_utils import temporary_cache_dir

from spyre_bench.checkpoints.find import cache_directory
from spyre_bench.engine.code_identity import Identity, differences, identity
from spyre_bench.engine.compile import CodeNotLoaded, cache_misses
from spyre_bench.engine.shared_files import NewFile, SharedDirectory, lacks_space

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
ROOM_BYTES_PER_BUCKET = 4 << 20
"""Reserved for an artefact before its code is compiled: about what a small model's takes."""


@dataclass(frozen=True)
class CompileWork:
    """What had to be compiled since the process began; two zeros between means warm."""

    cache_misses: int
    compiler_runs: int

    def __sub__(self, earlier: CompileWork) -> CompileWork:
        return CompileWork(
            self.cache_misses - earlier.cache_misses, self.compiler_runs - earlier.compiler_runs
        )

    @property
    def is_none(self) -> bool:
        return not (self.cache_misses or self.compiler_runs)


@dataclass
class CodeCache:
    """The directory that Inductor works in during one warmup."""

    directory: Path | None

    def work(self) -> CompileWork:
        # every run of the C++ compiler leaves one shared object behind
        runs = sum(1 for _ in self.directory.rglob("*.so")) if self.directory else 0
        return CompileWork(cache_misses(), runs)


class UnusableArtefact(Exception):
    """The artefact is there and cannot be used; says why."""


class DiscardedArtefact(Exception):
    """A warmup failed by the code of an artefact, which the next one must not unpack."""


@dataclass(frozen=True)
class Artefact:
    """An archive `<key>.tar` in a directory that others may share."""

    directory: SharedDirectory
    identity: Identity

    @property
    def name(self) -> str:
        return f"{hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()[:16]}.tar"

    @property
    def path(self) -> Path:
        return self.directory.path / self.name

    def unpack(self, into: Path) -> bool:
        """Whether an artefact was there. Raises UnusableArtefact for one that is not sound, and
        OSError where `into` has no room for it."""
        try:
            with self.directory.open(self.name) as file, tarfile.open(fileobj=file) as tar:
                manifest = _read_manifest(tar)
                if manifest["identity"] != self.identity:
                    raise ValueError("its manifest describes other code")
                digests = dict(manifest["files"])
                for member in tar:
                    if member.name != MANIFEST:
                        _unpack_file(tar, member, digests.pop(member.name), into)
            if digests:
                raise ValueError(f"{min(digests)} is missing in it")
        except (FileNotFoundError, NotADirectoryError):
            return False
        except Exception as error:  # whatever damage does to a tar file and to JSON
            if lacks_space(error):
                raise
            raise UnusableArtefact(f"artefact {self.path} is not usable: {error}") from error
        return True

    def pack(self, source: Path, file: BinaryIO) -> None:
        """Writes what `source` holds into an open file."""
        paths = {
            path.relative_to(source).as_posix(): path
            for path in sorted(source.rglob("*"))
            if path.is_file() and path.suffix != ".lock"
        }
        digests = {name: _sha256(path) for name, path in paths.items()}
        manifest = json.dumps({"identity": self.identity, "files": digests}, indent=1).encode()
        with tarfile.open(fileobj=file, mode="w", dereference=True) as tar:
            head = tarfile.TarInfo(MANIFEST)
            head.size = len(manifest)
            tar.addfile(head, io.BytesIO(manifest))
            for name, path in paths.items():
                tar.add(path, arcname=name)

    def missing(self) -> str:
        """What is not there, and how the nearest artefact differs."""
        found = []
        for path in sorted(self.directory.path.glob("*.tar")):
            with (
                contextlib.suppress(Exception),  # what cannot be read is not near
                self.directory.open(path.name) as file,
                tarfile.open(fileobj=file) as tar,
            ):
                found.append((differences(_read_manifest(tar)["identity"], self.identity), path))
        if found:
            changed, path = min(found, key=lambda one: len(one[0]))
            nearest = f"the nearest, {path.name}, was made for {', '.join(changed)}"
        else:
            nearest = "the directory holds no other"
        return f"no artefact {self.path} for {self.identity}; {nearest}"


@contextlib.contextmanager
def code_cache(config, anew: bool = False) -> Iterator[CodeCache]:
    """Inductor's cache during a warmup: from the artefact where there is one and it is not made
    `anew`, into it after.

    A directory that cannot be written is a warning before anything compiles. Raises ValueError
    under `require_precompiled` where the artefact is missing, unusable, failed or lacked something,
    and OSError where the temporary directory is full.
    """
    if config.artefact_directory is None or config.compile_backend != "inductor":
        yield CodeCache(None)
        return
    shared = SharedDirectory(config.artefact_directory, config.artefact_trust)
    artefact = Artefact(shared, identity(config))
    with _temporary_directory() as directory, contextlib.ExitStack() as stack:
        found = not anew and _unpack(artefact, directory, config.require_precompiled)
        new = None if found else _new_file(artefact, len(config.compiled), stack)
        cache = CodeCache(directory)
        before = cache.work()
        # The instruction set is part of the identity: without this, every start would try it
        # out again, in a process of its own that imports torch.
        with temporary_cache_dir(str(directory)), inductor_config.patch("cpp.vec_isa_ok", True):
            try:
                yield cache
            except Exception as error:
                if found and not lacks_space(error):
                    if not _is_the_codes_fault(error, directory):
                        error.add_note(f"The code that ran is of artefact {artefact.path}.")
                    elif config.require_precompiled:
                        raise ValueError(
                            f"require_precompiled: the code of artefact {artefact.path} fails "
                            f"({_reason(error)}). Start once without it to make another"
                        ) from error
                    else:
                        _discard(artefact, error)
                raise
        work = cache.work() - before
        if work.is_none:
            return
        if found:
            log.warning("artefact %s was incomplete (%s) and is rebuilt", artefact.path, work)
            new = _new_file(artefact, len(config.compiled), stack)
        if new is not None:
            _pack(artefact, directory, new)
        if config.require_precompiled:
            raise ValueError(
                f"require_precompiled: {artefact.path} lacked code ({work}). Start once without "
                f"it to make it whole"
            )


def default_artefact_directory() -> Path | None:
    """In the cache directory; None, with a warning, where this user has no place for one."""
    try:
        return cache_directory() / "artefacts"
    except ValueError as error:
        log.warning("compiled code is not kept: %s", error)
        return None


def _unpack(artefact: Artefact, into: Path, require_precompiled: bool) -> bool:
    """Whether there was a sound artefact."""
    try:
        if artefact.unpack(into):
            return True
        problem = artefact.missing() if require_precompiled else ""
    except UnusableArtefact as error:
        problem = str(error)
        shutil.rmtree(into)
        into.mkdir(mode=0o700)
    if require_precompiled:
        raise ValueError(f"require_precompiled: {problem}. Start once without it to make one")
    if problem:
        log.warning("%s; the code is compiled again", problem)
    return False


def _is_the_codes_fault(error: Exception, directory: Path) -> bool:
    """Whether an artefact may be to blame for an error of its warmup: what was unpacked could not
    be loaded, or is Python that cannot run. An operation that fails in the middle of it (no memory,
    a lost rank) would fail in new code too."""
    if isinstance(error, CodeNotLoaded):
        return True
    if isinstance(error, BackendCompilerFailed):
        return not isinstance(error.inner_exception, MemoryError)
    if isinstance(error, (RuntimeError, MemoryError, OSError)):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).is_relative_to(directory)


def _discard(artefact: Artefact, error: Exception) -> None:
    """Removes an artefact whose code has just failed, as the checksums cannot tell what was packed
    broken. One that stays is not unpacked again by this start."""
    done, remedy = "removed", "start again"
    try:
        artefact.path.unlink(missing_ok=True)  # another server may have been faster
    except OSError as failure:
        done = f"not removed ({failure.strerror or failure})"
        remedy = "remove it and start again"
    sentence = f"warmup failed with the code of artefact {artefact.path} ({_reason(error)}): {done}"
    log.warning("%s", sentence)
    raise DiscardedArtefact(f"{sentence}, {remedy}") from error


def _reason(error: Exception) -> str:
    # the first line of a compiler's error only says which compiler
    return " ".join(str(error).splitlines()[:2]) or type(error).__name__


def _new_file(artefact: Artefact, buckets: int, stack: contextlib.ExitStack) -> NewFile | None:
    """Where the artefact will be written; None, with a warning, where it cannot be kept."""
    try:
        artefact.directory.make()
        artefact.directory.sweep()
        room_bytes = buckets * ROOM_BYTES_PER_BUCKET
        return stack.enter_context(artefact.directory.new_file(artefact.name, room_bytes))
    except OSError as error:
        _warn_not_kept(artefact, error)
        return None


def _pack(artefact: Artefact, source: Path, new: NewFile) -> None:
    try:
        artefact.pack(source, new.file)
        new.publish()
    except OSError as error:
        _warn_not_kept(artefact, error)


def _warn_not_kept(artefact: Artefact, error: OSError) -> None:
    log.warning(
        "compiled code is not kept in %s (%s): serving goes on, and the next start compiles again. "
        "Make room there, or let artefact_directory name a place that user %d can write to",
        *(artefact.directory.path, error.strerror or error, os.geteuid()),
    )


@contextlib.contextmanager
def _temporary_directory() -> Iterator[Path]:
    """A directory that is gone afterwards. A full one raises OSError in one sentence, whoever
    noticed: this module, Inductor or its compiler."""
    place = "TMPDIR"
    try:
        place = tempfile.gettempdir()
        with tempfile.TemporaryDirectory(prefix="spyre-bench-") as name:
            yield Path(name)
    except Exception as error:
        if not (lacks_space(error) or place == "TMPDIR"):
            raise
        raise OSError(
            errno.ENOSPC,
            f"there is no room for compiling in the temporary directory {place}: make room, or "
            f"name another place by TMPDIR",
        ) from error


def _read_manifest(tar: tarfile.TarFile) -> dict[str, Any]:
    member = tar.next()
    file = tar.extractfile(member) if member and member.name == MANIFEST else None
    if file is None:
        raise ValueError("it begins with no manifest")
    return json.loads(file.read())


def _unpack_file(tar: tarfile.TarFile, member: tarfile.TarInfo, digest: str, into: Path) -> None:
    """Writes one file below `into`; ValueError where it is not the one that was packed."""
    name, content = PurePosixPath(member.name), tar.extractfile(member)
    if not member.isreg() or content is None or name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{name} is no file of an artefact")
    target = into / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)
    if _sha256(target) != digest:
        raise ValueError(f"{name} is not the file that was packed")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
