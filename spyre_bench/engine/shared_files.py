"""Files on a volume that several users, containers and hosts may share: whose are taken, and
writing one so that it appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import stat
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

TRUSTS = {
    "user": "written by this user or root, and by nobody else",
    "group": "that only members of this user's groups can have written",
    "any": "whoever wrote them",
}
"""Whose files are taken. The check is of each file as it is opened, so that under `user` it does
not matter who else may write into the directory."""

_FILE_MODE = {"user": 0o600, "group": 0o640, "any": 0o644}
_DIRECTORY_MODE = {"user": 0o700, "group": 0o2770, "any": 0o777}
PARTIAL = ".partial"
ABANDONED_S = 3600.0
"""A partial file of another host that nobody has written to for so long is nobody's."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class NewFile:
    """A file that nobody else sees under its name yet."""

    file: BinaryIO
    partial: Path
    target: Path

    def publish(self) -> None:
        """What was written takes the name in one step."""
        self.file.truncate()  # what was reserved beyond it
        self.file.flush()
        os.fsync(self.file.fileno())
        os.replace(self.partial, self.target)


@dataclass(frozen=True)
class SharedDirectory:
    """A directory, and whose files in it are taken: a key of `TRUSTS`."""

    path: Path
    trust: str = "user"

    def __post_init__(self):
        if self.trust not in TRUSTS:
            raise ValueError(f"trust {self.trust!r} is unknown: use one of {', '.join(TRUSTS)}")

    def make(self) -> None:
        """Makes the directory where it is missing, with the mode of its trust whatever the umask.
        An existing one is left as it is: a volume's mode is not its user's to choose."""
        if self.path.is_dir():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # another process was quicker
            self.path.mkdir(mode=0o700)
            self.path.chmod(_DIRECTORY_MODE[self.trust])

    def open(self, name: str) -> BinaryIO:
        """An existing file of a trusted writer. PermissionError, with the setting that would allow
        it, for another's; FileNotFoundError and OSError as usual."""
        # without blocking: somebody may have put a pipe there
        descriptor = os.open(self.path / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(f"{self.path / name} is no regular file")
            self._require_trusted(name, status)
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise

    def _require_trusted(self, name: str, status: os.stat_result) -> None:
        if self.trust == "any":
            return
        own = status.st_uid in (0, os.geteuid())
        if self.trust == "user" and own and not status.st_mode & 0o022:
            return
        if self.trust == "group":
            ours = own or status.st_gid in {os.getegid(), *os.getgroups()}
            # who may write into a directory with setgid leaves files of its group there
            if ours and not (status.st_mode | self.path.stat().st_mode) & 0o002:
                return
        raise PermissionError(
            f"{self.path / name} belongs to user {status.st_uid} and group {status.st_gid} with "
            f"mode {status.st_mode & 0o777:o}, and artefact_trust {self.trust!r} takes files "
            f"{TRUSTS[self.trust]}"
        )

    @contextlib.contextmanager
    def new_file(self, name: str, room_bytes: int = 0) -> Iterator[NewFile]:
        """A file that takes the name once it is published, with `room_bytes` reserved for it; gone
        with the context otherwise.

        OSError at once where the directory cannot be written or has no such room."""
        partial, descriptor = self._create(name)
        with os.fdopen(descriptor, "w+b") as file:
            try:
                os.fchmod(descriptor, _FILE_MODE[self.trust])  # whatever the umask
                if room_bytes:
                    os.posix_fallocate(descriptor, 0, room_bytes)
                yield NewFile(file, partial, self.path / name)
            finally:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)

    def _create(self, name: str) -> tuple[Path, int]:
        """A locked partial file. The lock goes with its process, however that ends."""
        while True:
            partial = self.path / f"{name}.{_boot()}.{uuid.uuid4().hex[:12]}{PARTIAL}"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(partial, flags, 0o600)
            try:
                with contextlib.suppress(OSError):  # a file system without locks: see `sweep`
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                if partial.exists():  # not swept before it was locked
                    return partial, descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def sweep(self) -> None:
        """Removes partial files whose writer is gone: of this host, by their lock; of another or
        on a file system without locks, those that nobody has written to for an hour."""
        for path in self.path.glob(f"*{PARTIAL}"):
            with contextlib.suppress(OSError):  # another's, or swept by another
                if _is_abandoned(path):
                    path.unlink()


def _is_abandoned(partial: Path) -> bool:
    descriptor = os.open(partial, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        is_old = time.time() - os.fstat(descriptor).st_mtime > ABANDONED_S
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # no locks on this file system
            return is_old
        return is_old or f".{_boot()}." in partial.name
    finally:
        os.close(descriptor)


def _boot() -> str:
    """The running kernel: its containers see each other's locks, and need not see others'."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        text = platform.node()
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def lacks_space(error: BaseException | None) -> bool:
    """Whether a full disk is somewhere in the error's causes, or in a compiler's words."""
    while error is not None:
        if getattr(error, "errno", None) in NO_SPACE or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
