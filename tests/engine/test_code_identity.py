"""Code that was compiled for one processor is not another's."""

import platform
import subprocess

import pytest

from spyre_bench.engine.code_identity import compiler_target, differences

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def forget():
    compiler_target.cache_clear()
    yield
    compiler_target.cache_clear()


def test_the_features_are_those_that_the_compiler_uses_on_this_processor():
    _, features = compiler_target()
    said = subprocess.run(
        ["g++", "-march=native", "-dM", "-E", "-x", "c++", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    extensions = {
        name
        for name in ("AVX2", "AVX512F", "AVX512VNNI", "AVX512BF16", "ARM_NEON")
        if f"__{name}__" in said
    }
    assert extensions <= set(features.split())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names an x86 level")
def test_code_for_a_lesser_processor_of_the_same_vector_length_is_other_code():
    from torch._inductor import config

    own = {"cpu_features": compiler_target()[1]}
    compiler_target.cache_clear()
    with config.patch("cpp.march", "x86-64-v2"):
        lesser = {"cpu_features": compiler_target()[1]}
    assert lesser != own
    (sentence,) = differences(own, lesser)
    assert sentence.startswith("a CPU with ")
    assert "AVX2" in sentence


def test_a_missing_compiler_is_left_to_inductors_own_words(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def none():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    assert compiler_target() == ("none", "")


def test_a_difference_names_only_what_differs():
    own = {"cpu_features": "AVX2 FMA", "torch": "2.0", "tp": 1}
    other = {"cpu_features": "AVX512F FMA", "torch": "2.0", "tp": 2}
    assert differences(other, own) == [
        "a CPU with AVX512F",
        "a CPU without AVX2",
        "tp 2 instead of 1",
    ]
    assert differences({}, {"cpu_features": "AVX2"}) == ["cpu_features None instead of 'AVX2'"]
