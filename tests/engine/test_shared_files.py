"""A volume of several users, containers and hosts: whose files are taken, and how they appear.

Users other than root are real ones (a forked process gives up its user id), so that these tests
need root; as anybody else they are skipped."""

import multiprocessing
import os
import shutil
import signal
import stat
import tempfile
import time
from pathlib import Path

import pytest

from spyre_bench.engine import shared_files
from spyre_bench.engine.shared_files import TRUSTS, SharedDirectory

pytestmark = pytest.mark.engine
FORK = multiprocessing.get_context("fork")
ALICE, BOB, TEAM = 12345, 12346, 4242


def in_another_process(function, *arguments, user=None, group=None, umask=0o022):
    """What the function returns, or raises, in a process of its own: of that user, with TEAM as
    its second group where `group` says so."""

    def run(connection):
        try:
            os.umask(umask)
            if user is not None:
                os.setgroups([group] if group else [])
                os.setgid(user)
                os.setuid(user)
            connection.send((True, function(*arguments)))
        except BaseException as error:
            connection.send((False, error))

    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=run, args=(theirs,))
    process.start()
    worked, value = ours.recv()
    process.join()
    if not worked:
        raise value
    return value


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


@pytest.fixture
def volume():
    """A directory that other users can reach, unlike those of pytest."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def write(shared: SharedDirectory, content: bytes = b"code") -> None:
    with shared.new_file("a.tar") as new:
        new.file.write(content)
        new.publish()


def read(shared: SharedDirectory) -> bytes:
    with shared.open("a.tar") as file:
        return file.read()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
@pytest.mark.parametrize("trust", TRUSTS)
def test_modes_are_those_of_the_trust_whatever_the_umask(tmp_path, trust, umask):
    shared = SharedDirectory(tmp_path / "parent" / "artefacts", trust)
    in_another_process(shared.make, umask=umask)
    in_another_process(write, shared, umask=umask)
    wanted = {"user": (0o700, 0o600), "group": (0o2770, 0o640), "any": (0o777, 0o644)}
    assert (mode(shared.path), mode(shared.path / "a.tar")) == wanted[trust]
    assert read(shared) == b"code"


@needs_root
def test_a_volume_of_fsgroup_serves_its_user(volume):
    os.chown(volume, 0, TEAM)
    volume.chmod(0o2775)
    shared = SharedDirectory(volume)
    for _ in range(2):  # a second start too
        in_another_process(write, shared, user=ALICE, group=TEAM, umask=0o002)
        assert in_another_process(read, shared, user=ALICE, group=TEAM) == b"code"
    assert mode(volume) == 0o2775


@needs_root
@pytest.mark.parametrize("others", [0o775, 0o777, 0o1777])
def test_another_users_file_is_not_taken_and_the_sentence_names_the_setting(volume, others):
    os.chown(volume, 0, TEAM)
    volume.chmod(others)
    in_another_process(write, SharedDirectory(volume, "any"), user=BOB, group=TEAM)
    with pytest.raises(PermissionError, match=f"user {BOB} .*artefact_trust 'user' takes files"):
        in_another_process(read, SharedDirectory(volume), user=ALICE, group=TEAM)


@needs_root
def test_members_of_a_group_share_under_group_and_outsiders_do_not(volume):
    os.chown(volume, 0, TEAM)
    volume.chmod(0o2775)
    shared = SharedDirectory(volume, "group")
    in_another_process(write, shared, user=BOB, group=TEAM)
    assert in_another_process(read, shared, user=ALICE, group=TEAM) == b"code"
    with pytest.raises(PermissionError):
        in_another_process(read, shared, user=ALICE)


@needs_root
def test_a_directory_where_everybody_writes_is_no_groups(volume):
    os.chown(volume, 0, TEAM)
    volume.chmod(0o2777)  # an outsider's file would get the group's name there
    in_another_process(write, SharedDirectory(volume, "any"), user=BOB)
    with pytest.raises(PermissionError, match="artefact_trust 'group' takes files"):
        in_another_process(read, SharedDirectory(volume, "group"), user=ALICE, group=TEAM)
    assert in_another_process(read, SharedDirectory(volume, "any"), user=ALICE) == b"code"


@needs_root
def test_what_root_has_put_into_an_image_is_taken(volume):
    write(SharedDirectory(volume, "any"))
    assert in_another_process(read, SharedDirectory(volume), user=ALICE) == b"code"


@pytest.mark.parametrize("writable", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_not_taken(tmp_path, writable):
    shared = SharedDirectory(tmp_path)
    write(shared)
    (tmp_path / "a.tar").chmod(writable)
    with pytest.raises(PermissionError, match=f"mode {writable:o}, and artefact_trust 'user'"):
        read(shared)


@needs_root
def test_a_directory_of_somebody_else_is_found_before_anything_is_written(volume):
    with pytest.raises(PermissionError):
        in_another_process(write, SharedDirectory(volume), user=ALICE)


def test_a_trust_of_another_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="trust 'all' is unknown: use one of user, group, any"):
        SharedDirectory(tmp_path, "all")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "is no regular file"),
        (os.mkdir, "is no regular file"),
        (lambda path: os.symlink(path, path), "symbolic links"),
    ],
)
def test_what_is_no_file_is_an_error_and_keeps_nobody_waiting(tmp_path, make, words):
    make(tmp_path / "a.tar")
    with pytest.raises(OSError, match=words):
        read(SharedDirectory(tmp_path))


def test_a_file_that_is_not_finished_leaves_the_old_one_and_no_trace(tmp_path):
    shared = SharedDirectory(tmp_path)
    write(shared, b"old")

    def fail():
        with shared.new_file("a.tar", room_bytes=1000) as new:
            new.file.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with shared.new_file("a.tar"):  # not published
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
    assert read(shared) == b"old"


def test_room_is_reserved_at_once_and_given_back(tmp_path):
    shared = SharedDirectory(tmp_path)
    with shared.new_file("a.tar", room_bytes=1 << 20) as new:
        assert new.partial.stat().st_blocks * 512 >= 1 << 20
        new.file.write(b"code")
        new.publish()
    assert read(shared) == b"code"


def test_writers_with_one_process_id_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in containers on one volume
    shared = SharedDirectory(tmp_path)
    contents = [bytes([number]) * 300_000 for number in range(16)]
    writers = [FORK.Process(target=write, args=(shared, content)) for content in contents]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.exitcode is None for writer in writers):
        shared.sweep()
        if (tmp_path / "a.tar").exists():
            seen.add(read(shared))
    assert [writer.exitcode for writer in writers] == [0] * 16
    assert seen | {read(shared)} <= set(contents)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def write_for_ever(shared, connection):
    with shared.new_file("a.tar"):
        connection.send("writing")
        time.sleep(600)


def test_what_a_killed_writer_left_is_swept_and_a_living_writers_file_is_not(tmp_path):
    shared = SharedDirectory(tmp_path)
    ours, theirs = FORK.Pipe()
    writer = FORK.Process(target=write_for_ever, args=(shared, theirs))
    writer.start()
    ours.recv()
    (partial,) = tmp_path.iterdir()
    os.utime(partial, (0, 0))  # however long it takes
    shared.sweep()
    assert partial.exists()
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert partial.exists()
    shared.sweep()
    assert not partial.exists()


@pytest.mark.parametrize(("age_s", "stays"), [(60, True), (2 * shared_files.ABANDONED_S, False)])
def test_another_hosts_file_is_swept_when_nobody_writes_to_it_any_more(tmp_path, age_s, stays):
    partial = tmp_path / "a.tar.anotherhost.0123.partial"
    partial.touch()
    os.utime(partial, (time.time() - age_s,) * 2)
    SharedDirectory(tmp_path).sweep()
    assert partial.exists() == stays


def test_without_locks_only_age_decides(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError("no locks here")

    monkeypatch.setattr(shared_files.fcntl, "flock", no_locks)
    shared = SharedDirectory(tmp_path)
    with shared.new_file("a.tar") as new:
        shared.sweep()
        assert new.partial.exists()
        os.utime(new.partial, (0, 0))
        shared.sweep()
        assert not new.partial.exists()
