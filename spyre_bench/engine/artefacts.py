"""Compiled code kept between runs: Inductor's cache directory as one archive, with a manifest.

torch's own `save_cache_artifacts` leaves the C++ compiler's output out, so that a fresh host
would run g++ again; the whole directory has it in.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch._inductor import config as inductor_config
from torch._inductor.runtime.cache_dir_utils import temporary_cache_dir

from spyre_bench.engine.compile import cache_misses

log = logging.getLogger(__name__)

PRIVATE = 0o700


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


def identity(config) -> dict[str, str | int]:
    """What compiled code depends on, of an `EngineConfig` and this machine."""
    text = (config.model_directory / "config.json").read_bytes()
    return {
        "model": hashlib.sha256(text).hexdigest()[:16],
        "buckets": str(config.buckets),
        "tp": config.rank.tp,
        "rank": config.rank.rank,
        "dtype": config.dtype,
        "compile_backend": config.compile_backend,
        "compile_scope": config.compile_scope,
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),  # Inductor writes the number into its loops
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ibm-fms": version("ibm-fms"),
        "spyre-bench": version("spyre-bench"),
    }


@dataclass(frozen=True)
class Artefact:
    """An archive `<key>.tar` and its manifest `<key>.json` in a private directory."""

    directory: Path
    identity: dict[str, str | int]

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()[:16]

    @property
    def archive(self) -> Path:
        return self.directory / f"{self.key}.tar"

    @property
    def manifest(self) -> Path:
        return self.directory / f"{self.key}.json"

    def unpack(self, into: Path) -> bool:
        """Whether a sound artefact was there; an unsound one is reported and removed.

        Raises ValueError where another user could have written it: it is code.
        """
        if not self.manifest.exists():
            return False
        for path in (self.manifest, self.archive):
            if path.exists():
                require_private(path)
        try:
            recorded = json.loads(self.manifest.read_text())
            if recorded["identity"] != self.identity:
                raise ValueError("its manifest describes other code")
            if recorded["sha256"] != _sha256(self.archive):
                raise ValueError("the archive is not the one that was written")
            with tarfile.open(self.archive) as tar:
                # Debian 12's Python, 3.11.2, has no filters; the archive is ours by its checksum
                tar.extractall(
                    into, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
                )
        except (OSError, ValueError, KeyError, TypeError, tarfile.TarError) as error:
            log.warning("artefact %s is not usable and is rebuilt: %s", self.archive, error)
            self.manifest.unlink(missing_ok=True)
            self.archive.unlink(missing_ok=True)
            return False
        return True

    def pack(self, source: Path) -> None:
        """Archive first, manifest last, each in one step: half an artefact is none."""
        partial = self.archive.with_suffix(f".{os.getpid()}.partial")
        try:
            with tarfile.open(partial, "w") as tar:
                tar.add(source, arcname=".", filter=_without_locks)
            digest = _sha256(partial)
            os.replace(partial, self.archive)
            partial.write_text(json.dumps({"identity": self.identity, "sha256": digest}, indent=1))
            os.replace(partial, self.manifest)
        finally:
            partial.unlink(missing_ok=True)

    def missing(self) -> str:
        """What is not there, and how the nearest artefact differs."""
        nearest, least = "the directory holds no other", None
        for path in sorted(self.directory.glob("*.json")):
            try:
                other = json.loads(path.read_text())["identity"]
            except (ValueError, KeyError):
                continue
            changed = [name for name in self.identity if other.get(name) != self.identity[name]]
            if least is None or len(changed) < least:
                least = len(changed)
                differences = ", ".join(
                    f"{name} {other.get(name)!r} instead of {self.identity[name]!r}"
                    for name in changed
                )
                nearest = f"the nearest, {path.name}, was made for {differences}"
        return f"no artefact {self.archive} for {self.identity}; {nearest}"


@contextlib.contextmanager
def code_cache(config) -> Iterator[CodeCache]:
    """Inductor's cache during a warmup: from the artefact where there is one, into it after.

    Raises ValueError under `require_precompiled` where the artefact is missing or lacked
    something, and for a directory that another user could have written.
    """
    if config.artefact_directory is None or config.compile_backend != "inductor":
        yield CodeCache(None)
        return
    config.artefact_directory.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    require_private(config.artefact_directory)
    artefact = Artefact(config.artefact_directory, identity(config))
    with tempfile.TemporaryDirectory(prefix="spyre-bench-") as name:
        directory = Path(name)
        found = artefact.unpack(directory)
        if config.require_precompiled and not found:
            raise ValueError(
                f"require_precompiled: {artefact.missing()}. Start once without it to make one"
            )
        cache = CodeCache(directory)
        before = cache.work()
        # The instruction set is part of the identity: without this, every start would try it
        # out again, in a process of its own that imports torch.
        with temporary_cache_dir(str(directory)), inductor_config.patch("cpp.vec_isa_ok", True):
            yield cache
        work = cache.work() - before
        if work.is_none:
            return
        if found:
            log.warning("artefact %s was incomplete (%s) and is rebuilt", artefact.archive, work)
        artefact.pack(directory)
        if config.require_precompiled:
            raise ValueError(
                f"require_precompiled: {artefact.archive} lacked code ({work}); it is rebuilt, "
                f"start again"
            )


def require_private(path: Path) -> None:
    """Raises ValueError unless only this user can have written the path."""
    status = path.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ValueError(
            f"{path} belongs to user {status.st_uid} with mode {status.st_mode & 0o777:o}: "
            f"artefacts are code, so nobody else may write there; remove it or chmod go-w"
        )


def _without_locks(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.endswith(".lock") else member


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
