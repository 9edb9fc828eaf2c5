"""What compiled code hangs on: two starts of one identity may run each other's code."""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version

import torch

Identity = dict[str, str | int]


def identity(config) -> Identity:
    """Of an `EngineConfig` on this machine."""
    text = (config.model_directory / "config.json").read_bytes()
    compiler, cpu_features = compiler_target()
    return {
        "model": hashlib.sha256(text).hexdigest()[:16],
        "buckets" if config.shapes is None else "shapes": str(config.compiled),
        "tp": config.rank.tp,
        "rank": config.rank.rank,
        "dtype": config.dtype,
        "compile_backend": config.compile_backend,
        "compile_scope": config.compile_scope,
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "cpu_features": cpu_features,
        "compiler": compiler,
        "libc": " ".join(platform.libc_ver()),
        "threads": torch.get_num_threads(),  # Inductor writes the number into its loops
        "python": platform.python_version(),
        "torch": torch.__version__,
        "model_code": config.model_code.name,
        **config.model_code.versions(),
        "spyre-bench": version("spyre-bench"),
    }


@functools.cache
def compiler_target() -> tuple[str, str]:
    """The C++ compiler, and what of this CPU it may use, as it says itself.

    Inductor compiles with `-march=native`: the code runs on CPUs with all that the compiler found
    here, which is more than the instruction set that torch names (VNNI, BF16 and others)."""
    from torch._inductor.cpp_builder import CppOptions, get_cpp_compiler

    try:
        compiler = get_cpp_compiler()
        flags = CppOptions(warning_all=False).get_cflags()
        target = [f"-{flag}" for flag in flags if flag.startswith("m")]
        asked, plain = _macros(compiler, target), _macros(compiler, [])
    except (RuntimeError, OSError, subprocess.SubprocessError):
        return "none", ""  # Inductor says what is missing
    features = {name.strip("_") for name in asked.keys() - plain.keys()}
    return f"{compiler} {asked.get('__VERSION__', '')}", " ".join(sorted(features))


def _macros(compiler: str, flags: list[str]) -> dict[str, str]:
    """What the compiler predefines under these flags: a macro for each feature it may use."""
    command = [compiler, *flags, "-dM", "-E", "-x", "c++", "/dev/null"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    lines = (line.split(maxsplit=2) for line in run.stdout.splitlines())
    return {words[1]: words[2] if len(words) > 2 else "" for words in lines if len(words) > 1}


def differences(other: Mapping[str, str | int], own: Identity) -> list[str]:
    """How `other` differs from `own`, one entry a name; of the CPU's features only those that
    one of the two lacks."""
    found = []
    for name, value in own.items():
        theirs = other.get(name)
        if theirs == value:
            continue
        if name == "cpu_features" and theirs is not None:
            more, fewer = set(str(theirs).split()), set(str(value).split())
            found += [f"a CPU with {', '.join(sorted(more - fewer))}"] * bool(more - fewer)
            found += [f"a CPU without {', '.join(sorted(fewer - more))}"] * bool(fewer - more)
        else:
            found.append(f"{name} {theirs!r} instead of {value!r}")
    return found
