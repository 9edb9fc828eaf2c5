"""A second start compiles nothing; an artefact that cannot be trusted is not run; and whatever is
wrong with the artefact or its directory, the engine starts."""

import contextlib
import errno
import inspect
import io
import json
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.test_shared_files import ALICE, in_another_process, needs_root, volume  # noqa: F401

pytestmark = pytest.mark.engine
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tiny_llama, tmp_path_factory):
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.shapes import BucketSet

    return EngineConfig(
        model_directory=tiny_llama,
        buckets=BucketSet.parse("1,64,3"),
        compile_backend="inductor",
        artefact_directory=tmp_path_factory.mktemp("artefacts") / "new",
    )


def start(config):
    """The warmup row of a fresh engine that knows nothing but the artefact directory."""
    import torch

    from spyre_bench.engine.causal_lm import SpyreCausalLM
    from spyre_bench.engine.warmup import warm_up

    torch._dynamo.reset()
    (row,) = warm_up(SpyreCausalLM(config), progress=False)
    return row


@pytest.fixture(scope="module")
def cold(config):
    row = start(config)
    return row, sorted(path.suffix for path in config.artefact_directory.iterdir())


@slow
def test_a_cold_start_leaves_one_archive(cold):
    row, suffixes = cold
    assert not row.was_warm
    assert suffixes == [".tar"]


@slow
def test_a_warm_start_neither_misses_the_cache_nor_runs_the_compiler(config, cold):
    assert start(replace(config, require_precompiled=True)).was_warm


@slow
def test_a_warm_start_traces_nothing(config, cold):
    import torch

    def captured():
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    before = captured()
    assert start(config).graphs == 2
    assert captured() == before


@slow
def test_a_pass_that_was_traced_from_other_source_is_compiled_again(tmp_path, monkeypatch):
    import importlib
    import linecache

    import torch

    from spyre_bench.engine.compile import SavedPass

    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "a_layer_of_this_test.py"
    answers = []
    for added, factor in ((1, 2), (1, 2), (20, 2), (20, 2), (20, 3)):
        source.write_text(f"FACTOR = 2\ndef forward(x):\n    return x * FACTOR + {added}\n")
        linecache.clearcache()
        importlib.invalidate_caches()
        sys.modules.pop(source.stem, None)
        module = importlib.import_module(source.stem)
        module.FACTOR = factor  # set from elsewhere, as a registry or the environment may do
        traced = SavedPass.traced
        answer = SavedPass(module.forward, "forward", tmp_path)(torch.ones(3))
        answers.append((answer.tolist(), SavedPass.traced - traced))
    assert answers == [
        *(([3.0] * 3, 1), ([3.0] * 3, 0)),
        *(([22.0] * 3, 1), ([22.0] * 3, 0)),
        ([23.0] * 3, 1),
    ]


@slow
def test_an_artefact_that_was_traced_from_other_source_is_rebuilt(config, cold, tmp_path, caplog):
    from spyre_bench.engine import compile

    mine = replace(config, artefact_directory=tmp_path / "artefacts")
    with pytest.MonkeyPatch.context() as patch:
        start(mine)
        patch.setattr(compile, "_has_changed", lambda source: True)
        with caplog.at_level(logging.WARNING):
            assert not start(mine).was_warm
    assert "was incomplete" in caplog.text
    assert start(mine).was_warm


@slow
def test_the_code_of_every_shape_is_found_again(tiny_llama, tmp_path):
    import torch

    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.paged_causal_lm import PagedCausalLM
    from spyre_bench.engine.warmup import warm_up
    from spyre_bench.shape_set import ShapeSet
    from tests.engine.paged_host import greedy

    shapes = ShapeSet.parse("64,128", "2,128 4,64")
    config = EngineConfig(
        model_directory=tiny_llama, shapes=shapes, artefact_directory=tmp_path / "artefacts"
    )
    said = {}
    for is_warm in (False, True):
        torch._dynamo.reset()
        model = PagedCausalLM(replace(config, require_precompiled=is_warm))
        rows = warm_up(model, progress=False)
        assert [row.was_warm for row in rows] == [is_warm] * 3
        said[is_warm] = greedy(model, [(place, [7 + place] * 70, 9) for place in range(4)])
    assert said[True] == said[False]


@slow
def test_the_archive_holds_what_the_cpp_compiler_made(config, cold):
    (archive,) = config.artefact_directory.glob("*.tar")
    with tarfile.open(archive) as tar:
        assert any(name.endswith(".so") for name in tar.getnames())


def broken_copy(config, tmp_path, kind):
    """The artefact of a config with files of a kind broken before they were packed."""
    from spyre_bench.engine.artefacts import Artefact
    from spyre_bench.engine.code_identity import identity
    from spyre_bench.engine.shared_files import SharedDirectory

    sound = Artefact(SharedDirectory(config.artefact_directory), identity(config))
    broken = replace(sound, directory=SharedDirectory(tmp_path / "broken"))
    assert sound.unpack(tmp_path / "code")
    files = [path for path in tmp_path.glob(f"code/**/{kind}") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(b"broken(")
    broken.directory.make()
    with broken.directory.new_file(broken.name) as new:
        broken.pack(tmp_path / "code", new.file)
        new.publish()
    return replace(config, artefact_directory=broken.directory.path)


@slow
@pytest.mark.parametrize("kind", ["*.so", "*.pass"])
def test_code_that_was_packed_broken_is_compiled_again(config, cold, tmp_path, kind):
    mine = broken_copy(config, tmp_path, kind)
    assert not start(mine).was_warm
    assert start(mine).was_warm


@pytest.fixture(scope="module")
def traced(config, tmp_path_factory):
    """The config of an engine whose passes are not saved, as those of several ranks."""
    from spyre_bench.engine.compiled_model import CompiledModel

    mine = replace(config, artefact_directory=tmp_path_factory.mktemp("traced") / "new")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompiledModel, "saves_passes", False)
        assert not start(mine).was_warm
        assert start(mine).was_warm
        yield mine


@slow
@pytest.mark.parametrize("kind", ["*.so", "fxgraph/*/*/*", "aotautograd/*/*", "*.py"])
def test_code_of_a_traced_pass_that_was_packed_broken_is_compiled_again(traced, tmp_path, kind):
    assert not start(broken_copy(traced, tmp_path, kind)).was_warm


# --- without an engine: what "compiles" here is a file that appears in Inductor's directory -------
def compile_into(config) -> bool:
    """Whether the artefact already had the code."""
    from spyre_bench.engine.artefacts import code_cache

    with code_cache(config) as cache:
        was_there = (cache.directory / "ab" / "code.so").exists()
        if not was_there:
            (cache.directory / "ab").mkdir()
            (cache.directory / "ab" / "code.so").write_bytes(os.urandom(100_000))
    return was_there


@pytest.fixture
def here(config, tmp_path):
    return replace(config, artefact_directory=tmp_path / "artefacts")


@pytest.fixture
def archive(here) -> Path:
    assert not compile_into(here)
    (archive,) = here.artefact_directory.iterdir()
    assert compile_into(here)
    return archive


def test_require_precompiled_refuses_to_start_and_says_what_is_missing(here, archive):
    from spyre_bench.shapes import BucketSet

    other = replace(here, buckets=BucketSet.parse("1,64,4"), require_precompiled=True)
    with pytest.raises(
        ValueError, match=r"no artefact .*\.tar for .*buckets '1,64,3' instead of '1,64,4'"
    ):
        compile_into(other)
    assert list(here.artefact_directory.iterdir()) == [archive]


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022])
def test_a_second_start_takes_what_the_first_one_wrote_whatever_the_umask(here, umask):
    assert not in_another_process(compile_into, here, umask=umask)
    assert in_another_process(compile_into, here, umask=umask)


def change_a_bit(archive):
    code = bytearray(archive.read_bytes())
    code[len(code) // 2] ^= 1
    archive.write_bytes(code)


def cut(archive):
    os.truncate(archive, archive.stat().st_size // 2)


def cut_its_end(archive):
    os.truncate(archive, 512 * (archive.stat().st_size // 512 // 2))


def empty(archive):
    archive.write_bytes(b"")


def put_a_directory_there(archive):
    archive.unlink()
    (archive / "in").mkdir(parents=True)


def put_a_pipe_there(archive):
    archive.unlink()
    os.mkfifo(archive)


def let_everybody_write(archive):
    archive.chmod(0o666)


def with_manifest(change):
    """The archive with another manifest."""

    def harm(archive):
        with tarfile.open(archive) as tar:
            members = [(member, tar.extractfile(member).read()) for member in tar]
        manifest = change(json.loads(members[0][1]))
        text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        with tarfile.open(archive, "w") as tar:
            for member, content in [(members[0][0], text), *members[1:]]:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    return harm


def with_member(name, kind=tarfile.REGTYPE):
    """The archive with one member more, which its manifest knows."""

    def harm(archive):
        with_manifest(lambda m: m | {"files": m["files"] | {name: "0" * 64}})(archive)
        with tarfile.open(archive, "a") as tar:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)

    return harm


HARM = {
    "a bit": change_a_bit,
    "cut": cut,
    "cut at a block": cut_its_end,
    "empty": empty,
    "a directory": put_a_directory_there,
    "a pipe": put_a_pipe_there,
    "others write": let_everybody_write,
    "stale": with_manifest(lambda m: m | {"identity": m["identity"] | {"torch": "1.0"}}),
    "a list": with_manifest(lambda m: []),
    "no files": with_manifest(lambda m: {"identity": m["identity"]}),
    "one file more": with_manifest(lambda m: m | {"files": m["files"] | {"x": "0"}}),
    "one file less": with_manifest(lambda m: m | {"files": {}}),
    "no JSON": with_manifest(lambda m: b"{"),
    "no text": with_manifest(lambda m: b"\xff\xfe\xff"),
    "deep": with_manifest(lambda m: b"[" * 100_000),
    "outside": with_member("../outside"),
    "absolute": with_member("/tmp/outside"),
    "a link": with_member("link", tarfile.SYMTYPE),
    "a device": with_member("device", tarfile.CHRTYPE),
}


@pytest.mark.parametrize("harm", HARM)
def test_an_unsound_artefact_is_reported_and_never_run(here, archive, caplog, harm):
    HARM[harm](archive)
    with pytest.raises(ValueError, match=r"require_precompiled: artefact .* is not usable: "):
        compile_into(replace(here, require_precompiled=True))
    with caplog.at_level(logging.WARNING):
        assert not compile_into(here)
    assert f"artefact {archive} is not usable" in caplog.text
    assert not (here.artefact_directory.parent / "outside").exists()
    if not archive.is_dir():  # which nothing of ours removes
        assert compile_into(here)


def test_an_artefact_that_lacks_code_is_rebuilt(here, archive, caplog):
    from spyre_bench.engine.artefacts import code_cache

    with caplog.at_level(logging.WARNING), code_cache(here) as cache:
        (cache.directory / "more.so").touch()
    assert "was incomplete" in caplog.text
    with code_cache(here) as cache:
        assert (cache.directory / "more.so").exists()


def cannot_be_loaded(directory):
    from torch._dynamo.exc import BackendCompilerFailed

    raise BackendCompilerFailed(
        cannot_be_loaded, ImportError("code.so: file too short"), inspect.currentframe()
    )


def cannot_run(directory):
    exec(compile("no_such_name", str(directory / "ab" / "code.py"), "exec"))


@pytest.mark.parametrize("fault", [cannot_be_loaded, cannot_run])
def test_an_artefact_whose_code_fails_is_removed_unless_it_must_be_there(here, archive, fault):
    from spyre_bench.engine.artefacts import DiscardedArtefact, code_cache

    required = replace(here, require_precompiled=True)
    words = "require_precompiled: the code of artefact .*fails .*Start once without it to make"
    with pytest.raises(ValueError, match=words), code_cache(required) as cache:
        fault(cache.directory)
    assert archive.exists()
    words = r"(too short|no_such_name.*)\): removed"
    with pytest.raises(DiscardedArtefact, match=words), code_cache(here) as cache:
        fault(cache.directory)
    assert not archive.exists()


@pytest.mark.parametrize("failure", [PermissionError(13, "read-only"), FileNotFoundError()])
def test_an_artefact_whose_code_fails_is_not_unpacked_again_where_it_stays(
    here, archive, monkeypatch, failure
):
    from spyre_bench.engine.artefacts import DiscardedArtefact, code_cache

    def unlink(path, missing_ok=False):
        if not (missing_ok and isinstance(failure, FileNotFoundError)):
            raise failure

    monkeypatch.setattr(Path, "unlink", unlink)
    words = "removed, start again" if failure.errno is None else "not removed .read-only., remove"
    with pytest.raises(DiscardedArtefact, match=words), code_cache(here) as cache:
        cannot_be_loaded(cache.directory)
    with code_cache(here, anew=True) as cache:
        assert not list(cache.directory.iterdir())


def memory_runs_out_while_compiling(directory):
    from torch._dynamo.exc import BackendCompilerFailed

    raise BackendCompilerFailed(cannot_be_loaded, MemoryError(), inspect.currentframe())


def an_operation_of_it_fails(directory):
    code = "raise RuntimeError('gloo: connection closed by peer')"
    exec(compile(code, str(directory / "ab" / "code.py"), "exec"))


def the_engine_fails(directory):
    raise AssertionError("shape 4,256 made 2 graphs")


@pytest.mark.parametrize(
    "fault", [memory_runs_out_while_compiling, an_operation_of_it_fails, the_engine_fails]
)
def test_an_artefact_outlives_what_is_not_its_fault_and_is_named(here, archive, fault):
    from spyre_bench.engine.artefacts import code_cache

    with pytest.raises((RuntimeError, AssertionError)) as raised, code_cache(here) as cache:
        fault(cache.directory)
    assert str(archive) in raised.value.__notes__[0]
    assert compile_into(here)


def test_a_failed_warmup_leaves_nothing_behind(here):
    from spyre_bench.engine.artefacts import code_cache

    with pytest.raises(RuntimeError, match="of the model"), code_cache(here):
        raise RuntimeError("of the model")
    assert list(here.artefact_directory.iterdir()) == []


@contextlib.contextmanager
def mounted(path: Path, options: str):
    path.mkdir(exist_ok=True)
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path])
    if mount.returncode:
        pytest.skip("this machine mounts nothing")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def starts_without_keeping(config, caplog, because: str) -> None:
    """The warning comes first, and nothing is left behind."""
    from spyre_bench.engine.artefacts import code_cache

    with caplog.at_level(logging.WARNING), code_cache(config) as cache:
        assert f"not kept in {config.artefact_directory} ({because})" in caplog.text
        (cache.directory / "code.so").touch()
    assert len(caplog.records) == 1
    if config.artefact_directory.exists():
        assert list(config.artefact_directory.glob("*.partial")) == []


@needs_root
def test_a_full_directory_is_found_before_compiling_and_the_engine_starts(here, caplog):
    with mounted(here.artefact_directory, "size=1m"):
        starts_without_keeping(here, caplog, "No space left on device")


@needs_root
def test_a_read_only_directory_is_found_before_compiling_and_the_engine_starts(here, caplog):
    with mounted(here.artefact_directory, "ro"):
        starts_without_keeping(here, caplog, "Read-only file system")
        with pytest.raises(ValueError, match="require_precompiled: no artefact"):
            compile_into(replace(here, require_precompiled=True))


@needs_root
def test_a_read_only_directory_with_the_artefact_serves_without_a_warning(here, archive, caplog):
    subprocess.run(["mount", "--bind", archive.parent, archive.parent], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", archive.parent], check=True)
        assert compile_into(replace(here, require_precompiled=True))
        assert caplog.records == []
    finally:
        subprocess.run(["umount", archive.parent], check=True)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_directory_without_room_is_a_warning_for_any_user(here, caplog, monkeypatch, error):
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    starts_without_keeping(here, caplog, os.strerror(error))


def test_a_disk_that_fills_while_packing_is_a_warning(here, caplog, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    assert not compile_into(here)
    assert "spyre_bench" in caplog.records[0].name
    assert "No space left on device" in caplog.text
    assert list(here.artefact_directory.iterdir()) == []


def test_a_file_in_place_of_the_directory_is_a_warning(here, caplog):
    here.artefact_directory.write_text("")
    starts_without_keeping(here, caplog, "Not a directory")


@needs_root
def test_another_users_directory_is_a_warning(here, volume, caplog):  # noqa: F811
    from spyre_bench.engine import code_identity

    code_identity.identity(here)  # reads the model, which only root can here
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spyre_bench.engine.artefacts.identity", lambda config: {"of": "a test"})
        other = replace(here, artefact_directory=volume)

        def run():
            starts_without_keeping(other, caplog, "Permission denied")

        in_another_process(run, user=ALICE)


def test_a_full_temporary_directory_ends_in_a_sentence(here, tmp_path, monkeypatch):
    with mounted(tmp_path / "small", "size=64k"):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "small"))
        with pytest.raises(OSError, match=r"no room for compiling in .*/small: .* by TMPDIR"):
            compile_into(here)


def test_no_temporary_directory_at_all_ends_in_a_sentence(here, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", lambda: tempfile.mkdtemp(dir="/nowhere"))
    with pytest.raises(OSError, match="no room for compiling in the temporary directory TMPDIR"):
        compile_into(here)


def test_a_full_disk_in_the_compilers_words_ends_in_the_same_sentence(here):
    from spyre_bench.engine.artefacts import code_cache

    with pytest.raises(OSError, match="no room for compiling"), code_cache(here):
        raise RuntimeError("C++ compile error: as: x.o: No space left on device")


def test_without_a_home_no_code_is_kept_and_the_reason_is_said(monkeypatch, caplog):
    from spyre_bench.engine.artefacts import default_artefact_directory

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SPYRE_BENCH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert default_artefact_directory() is None
    assert "has no home directory for a cache: set SPYRE_BENCH_CACHE" in caplog.text
