"""A second start compiles nothing; an artefact that cannot be trusted is not."""

import json
import logging
from dataclasses import replace

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def config(tiny_llama, tmp_path_factory):
    from spyre_bench.engine.model import EngineConfig
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

    from spyre_bench.engine.model import SpyreCausalLM
    from spyre_bench.engine.warmup import warm_up

    torch._dynamo.reset()
    (row,) = warm_up(SpyreCausalLM(config), progress=False)
    return row


@pytest.fixture(scope="module")
def cold(config):
    row = start(config)
    return row, sorted(path.suffix for path in config.artefact_directory.iterdir())


def test_a_cold_start_leaves_one_archive_with_its_manifest(cold):
    row, suffixes = cold
    assert not row.was_warm
    assert suffixes == [".json", ".tar"]


def test_a_warm_start_neither_misses_the_cache_nor_runs_the_compiler(config, cold):
    assert start(replace(config, require_precompiled=True)).was_warm


def test_the_archive_holds_what_the_cpp_compiler_made(config, cold):
    import tarfile

    (archive,) = config.artefact_directory.glob("*.tar")
    with tarfile.open(archive) as tar:
        assert any(name.endswith(".so") for name in tar.getnames())


def test_require_precompiled_refuses_to_start_and_says_what_is_missing(config, cold):
    from spyre_bench.shapes import BucketSet

    other = replace(config, buckets=BucketSet.parse("1,64,4"), require_precompiled=True)
    with pytest.raises(
        ValueError, match=r"no artefact .*\.tar for .*buckets '1,64,3' instead of '1,64,4'"
    ):
        start(other)
    assert len(list(config.artefact_directory.iterdir())) == 2


def damage_archive(archive, manifest):
    code = bytearray(archive.read_bytes())
    code[len(code) // 2] ^= 1
    archive.write_bytes(code)


def lose_archive(archive, manifest):
    archive.unlink()


def cut_manifest(archive, manifest):
    manifest.write_text(manifest.read_text()[:40])


def make_stale(archive, manifest):
    text = json.loads(manifest.read_text())
    text["identity"]["torch"] = "1.0"
    manifest.write_text(json.dumps(text))


@pytest.mark.parametrize("harm", [damage_archive, lose_archive, cut_manifest, make_stale])
def test_an_unsound_artefact_is_reported_and_removed(config, cold, tmp_path, caplog, harm):
    from spyre_bench.engine.artefacts import Artefact, identity

    artefact = Artefact(tmp_path, identity(config))
    for path in config.artefact_directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert artefact.unpack(tmp_path / "sound")
    harm(artefact.archive, artefact.manifest)
    with caplog.at_level(logging.WARNING):
        assert not artefact.unpack(tmp_path / "unsound")
    assert "is not usable and is rebuilt" in caplog.text
    assert not artefact.manifest.exists()
    assert not artefact.archive.exists()


@pytest.mark.parametrize("suffix", [".tar", ".json"])
def test_an_artefact_that_another_user_could_have_written_is_refused(
    config, cold, tmp_path, suffix
):
    from spyre_bench.engine.artefacts import Artefact, identity

    artefact = Artefact(tmp_path, identity(config))
    for path in config.artefact_directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    artefact.archive.with_suffix(suffix).chmod(0o666)
    with pytest.raises(ValueError, match=r"mode 666: artefacts are code.*chmod go-w"):
        artefact.unpack(tmp_path / "out")


def test_a_directory_that_others_can_write_to_is_refused(config, tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(ValueError, match="mode 777: artefacts are code"):
        start(replace(config, artefact_directory=tmp_path))
