"""The configuration of the backend, read once from vLLM's `additional_config["spyre"]` and, where
that is silent, from the environment names that deployments on Spyre already use."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spyre_bench.cost.bucket_cost import CostModel
from spyre_bench.cost.source import NAMED, PREFIX, SIMULATED, load_cost
from spyre_bench.engine.compile import COMPILE_BACKENDS, COMPILE_SCOPES
from spyre_bench.engine.shared_files import TRUSTS
from spyre_bench.plugin.environment import (
    BACKEND_ALIASES,
    CARD_LIMITS,
    OBEYED,
    OLD,
    obeyed,
    warnings,
)
from spyre_bench.policy.continuous import RULES, Rules
from spyre_bench.policy.static import POLICIES, Policy
from spyre_bench.shape_set import (
    BLOCK_TOKENS,
    DEFAULT_CHUNK,
    DEFAULT_ROWS,
    DecodeShape,
    PrefillShape,
    ShapeSet,
    blocks_of,
    shapes_for,
    words,
)
from spyre_bench.shapes import BucketSet

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from spyre_bench.pass_log import ShapeWarmup, Warmup

BATCHING = ("static", "continuous")

MODEL_CODES = ("fms", "vllm")

CLOCKS = ("real", "virtual")

STEP_TIMEOUT = "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"  # vLLM's own name, with its own default

SHAPES_FILE = "SPYRE_BENCH_SHAPES"  # of buckets or shapes, as `spyre-bench tune --out` writes it

SECONDS = {
    "gather_s": (0, 60),
    "max_wait_s": (0, 600),
    "max_age_s": (0, 86400),
    "join_timeout_s": (1, 3600),
    "step_timeout_s": (1, 3600),
}


@dataclass(frozen=True, kw_only=True)
class SpyreConfig:
    """What the user of the backend chooses. Every field is checked; a ValueError names the value,
    the rule and the fix."""

    batching: str = "static"  # or continuous
    buckets: BucketSet | None = None  # of static batching
    prefill_shapes: str | None = None  # of continuous batching, "64,512 256,2048"
    decode_shapes: str | None = None  # "4,512 8,2048"
    blocks: int | None = None  # of its KV cache, block 0 included; --num-gpu-blocks-override
    chunk_tokens: int | None = None  # its longest chunk; --max-num-batched-tokens
    max_num_seqs: int | None = None  # its rows, where no decode_shapes are named
    rules: Rules = RULES
    model_code: str = "fms"  # or vllm: whose implementation of the model runs
    compile_backend: str = "inductor"
    compile_scope: str = "layer"
    artefact_directory: Path | None = None  # compiled code; None: in the cache directory
    artefact_trust: str = "user"  # whose compiled code is run: see shared_files.TRUSTS
    require_precompiled: bool = False
    memory_bytes: int | None = None  # limit; None: what the machine has
    pass_log: Path | None = None  # JSON lines, one per pass
    device: str | None = None  # "simulated:COST": computes nothing and takes the cost's time
    clock: str = "real"  # ... which it sleeps, or virtual: the clock jumps
    warmup: bool = True  # ... the compile seconds of a cold start too
    extrapolate: bool = False  # ... of shapes beyond what the cost's table measured too
    policy: str = "best_fit"  # see policy.static.Policy, also for the three times
    gather_s: float = 0.02  # an idle engine waits this long for company of a first request
    max_wait_s: float = 0.0  # a batch with free rows waits this long for more members
    max_age_s: float = 60.0  # with length_aware: from then on a waiting head goes first
    join_timeout_s: float = 120.0  # tensor parallel: how long ranks wait for each other at start
    step_timeout_s: float = 60.0  # tensor parallel: a pass that takes longer ends the engine
    max_load_processes: int | None = None  # ranks that compile on cards at a time; None: all

    def __post_init__(self):
        _require_one_of("batching", self.batching, BATCHING)
        if self.batching == "static" and self.buckets is None:
            raise _wrong("buckets", None, "is a list of [batch_size, prompt_length, new_tokens]")
        for name in ("blocks", "chunk_tokens", "max_num_seqs"):
            value = getattr(self, name)
            if value is not None and (not _is_number(value, int) or value < 1):
                raise _wrong(name, value, "is a whole number above 0")
        _require_one_of("model_code", self.model_code, MODEL_CODES)
        _require_one_of("compile_backend", self.compile_backend, COMPILE_BACKENDS)
        _require_one_of("compile_scope", self.compile_scope, COMPILE_SCOPES)
        _require_one_of("artefact_trust", self.artefact_trust, tuple(TRUSTS))
        if not isinstance(self.require_precompiled, bool):
            raise _wrong("require_precompiled", self.require_precompiled, "is true or false")
        self._check_device()
        if self.memory_bytes is not None and (
            not _is_number(self.memory_bytes, int) or self.memory_bytes < 1
        ):
            raise _wrong("memory_bytes", self.memory_bytes, "is a whole number of bytes above 0")
        if self.max_load_processes is not None and (
            not _is_number(self.max_load_processes, int) or self.max_load_processes < 1
        ):
            raise _wrong("max_load_processes", self.max_load_processes, "is a whole number above 0")
        _require_one_of("policy", self.policy, tuple(POLICIES))
        for name, (shortest_s, longest_s) in SECONDS.items():
            value = getattr(self, name)
            if not _is_number(value, int, float) or not shortest_s <= value <= longest_s:
                raise _wrong(
                    name, value, f"is a number of seconds from {shortest_s} to {longest_s}"
                )

    def _check_device(self) -> None:
        _require_one_of("clock", self.clock, CLOCKS)
        for name in ("warmup", "extrapolate"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, getattr(self, name), "is true or false")
        device = self.device
        if device is None:
            for name in OF_SIMULATED:
                if getattr(self, name) != getattr(type(self), name):
                    raise _wrong(
                        name, getattr(self, name), 'is a setting of a simulated "device" alone'
                    )
        elif not isinstance(device, str) or not device.removeprefix(SIMULATED):
            raise _wrong("device", device, DEVICE_RULE)
        elif not device.startswith(SIMULATED):
            near = SIMULATED + device if device.startswith(PREFIX) else None
            raise _wrong("device", device, DEVICE_RULE, near)

    @property
    def cost(self) -> CostModel:
        """What the simulated device takes its time from. Raises ValueError as `load_cost` does."""
        assert self.device is not None, "this computes"
        return load_cost(self.device.removeprefix(SIMULATED), extrapolate=self.extrapolate)

    @classmethod
    def of(cls, vllm_config: VllmConfig) -> SpyreConfig:
        """The configuration of a vLLM engine, in whatever process."""
        additional = vllm_config.additional_config
        if not isinstance(additional, Mapping):
            raise ValueError(
                f"additional_config {additional!r} is not a mapping: write "
                '{"spyre": {"buckets": [[4, 64, 32]]}}'
            )
        _refuse_beside(additional)
        return cls.read(additional.get("spyre", {}), os.environ)

    @classmethod
    def read(cls, settings: Mapping[str, Any], environment: Mapping[str, str]) -> SpyreConfig:
        """The settings, completed by the environment where they are silent."""
        if not isinstance(settings, Mapping):
            raise ValueError(
                f'additional_config["spyre"] {settings!r} is not a mapping: write '
                '{"buckets": [[4, 64, 32]]}'
            )
        _refuse_unknown(settings)
        made = _from_environment(environment, without=settings)
        values = made | dict(settings)
        if "rules" in made:  # with those of the settings in them
            values["rules"] = made["rules"]
        if values.get("batching", "static") == "continuous":
            _refuse_of_the_other(values, "continuous", STATIC_ONLY)
            values["rules"] = _rules(values)
            values |= {name: _shape_text(name, values.get(name)) for name in SHAPES}
        else:
            _refuse_of_the_other(values, "static", CONTINUOUS_ONLY)
            values["buckets"] = _buckets(values["buckets"])
        for name in ("artefact_directory", "pass_log"):
            values[name] = _path(name, values.get(name))
        if isinstance(values.get("device"), str):
            values["device"] = _device(values["device"])
        backend = values.get("compile_backend")
        if isinstance(backend, str):
            values["compile_backend"] = BACKEND_ALIASES.get(backend, backend)
        return cls(**values)

    def environment_warnings(self) -> list[str]:
        """A sentence for each name in the environment that changes nothing."""
        return warnings(os.environ, self.batching)

    @property
    def formation(self) -> Policy:
        """How static batches are formed."""
        return Policy(self.policy, self.max_wait_s, self.gather_s, self.max_age_s)

    def as_settings(self) -> dict[str, Any]:
        """The mapping, in types of JSON, that `read` turns into this configuration."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["buckets"] = [
            [bucket.batch_size, bucket.prompt_length, bucket.new_tokens]
            for bucket in self.buckets or ()
        ]
        values["rules"] = asdict(self.rules)
        of_the_other = CONTINUOUS_ONLY if self.batching == "static" else STATIC_ONLY
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in values.items()
            if name not in of_the_other
        }

    @property
    def shapes(self) -> ShapeSet | None:
        """What continuous batching compiles; None under static batching. The platform has named
        them all, see `with_shapes`."""
        if self.batching == "static":
            return None
        assert self.prefill_shapes, "the platform names the shapes"
        assert self.decode_shapes, "the platform names the shapes"
        return ShapeSet.parse(self.prefill_shapes, self.decode_shapes, self.blocks)

    @property
    def compiled(self) -> BucketSet | ShapeSet:
        """What is compiled at start, and what a request must fit."""
        compiled = self.shapes if self.buckets is None else self.buckets
        assert compiled is not None
        return compiled

    def with_shapes(
        self, max_model_len: int, rows: int | None, chunk: int | None, blocks: int | None
    ) -> SpyreConfig:
        """With every shape named: where the settings are silent, by vLLM's own options and the rule
        of `shape_set.shapes_for`. Raises ValueError for fewer rows than the named shapes have."""
        rows, chunk = self.max_num_seqs or rows, self.chunk_tokens or chunk
        made = shapes_for(max_model_len, rows or DEFAULT_ROWS, chunk or DEFAULT_CHUNK, None)
        prefill = self.prefill_shapes or " ".join(map(str, made.prefill))
        decode = self.decode_shapes or " ".join(map(str, made.decode))
        shapes = ShapeSet.parse(prefill, decode, self.blocks or blocks)
        if rows is not None and rows < shapes.max_rows:
            raise ValueError(
                f"max_num_seqs {rows} is below the {shapes.max_rows} rows of decode_shapes "
                f"{decode!r}: leave it out, or compile no more than {rows} rows"
            )
        rules = self.rules
        if chunk and rules.chunk_tokens is None:
            whole = blocks_of(chunk) * BLOCK_TOKENS
            rules = replace(rules, chunk_tokens=min(whole, shapes.max_chunk))
        return replace(
            self, prefill_shapes=prefill, decode_shapes=decode, blocks=shapes.blocks, rules=rules
        )

    def require_context(self, context_length: int) -> None:
        """Raises ValueError for a bucket or shape longer than the model's context, in tokens."""
        for compiled in self.compiled:
            if compiled.context_length > context_length:
                what, lower = (
                    ("bucket", "its prompt length or new tokens")
                    if self.batching == "static"
                    else ("shape", "it")
                )
                raise ValueError(
                    f"{what} {compiled} needs a context of {compiled.context_length} tokens, but "
                    f"the model (or --max-model-len) allows {context_length}: lower {lower}, or "
                    f"raise --max-model-len as far as the model goes"
                )


WARMUP = "spyre_warmup"
"""Where the executor leaves what the engine's warmup measured for the scheduler: of vLLM's objects
only the configuration reaches both."""


def note_warmup(vllm_config: VllmConfig, rows: Iterable[Warmup] | Iterable[ShapeWarmup]) -> None:
    """Keeps the warmup of the engine's buckets or shapes with its configuration."""
    vllm_config.additional_config[WARMUP] = list(rows)


def noted_warmup(vllm_config: VllmConfig) -> tuple[Warmup, ...]:
    """The warmup of the engine's buckets, in ascending order; the engine has been warmed up."""
    return tuple(sorted(vllm_config.additional_config[WARMUP], key=lambda row: row.bucket))


def noted_shape_warmup(vllm_config: VllmConfig) -> tuple[ShapeWarmup, ...]:
    """The warmup of the engine's shapes; the engine has been warmed up."""
    return tuple(vllm_config.additional_config[WARMUP])


OF_SIMULATED = ("clock", "warmup", "extrapolate")
DEVICE_RULE = (
    'is "simulated:" and a source of costs, such as "simulated:cost.csv" or '
    '"simulated:card:granite-3.3-8b,tp=4"; leave it out for the real one'
)

SHAPES = ("prefill_shapes", "decode_shapes")
CONTINUOUS_ONLY = (*SHAPES, "blocks", "chunk_tokens", "max_num_seqs", "rules")
STATIC_ONLY = ("buckets", "policy", "gather_s", "max_wait_s", "max_age_s")


def _refuse_of_the_other(values: Mapping[str, Any], batching: str, others: Iterable[str]) -> None:
    """Settings of the other kind of batching would be forgotten without a word."""
    other = "static" if batching == "continuous" else "continuous"
    for name in others:
        if values.get(name) is not None:
            raise _wrong(
                name, values[name], f"is a setting of {other} batching and batching is {batching}"
            )


def _rules(values: Mapping[str, Any]) -> Rules:
    rules = values.get("rules", {})
    if not isinstance(rules, Mapping):
        raise _wrong("rules", rules, 'is a mapping such as {"admission": "preempt"}')
    known = [field.name for field in fields(Rules)]
    for name in rules:
        _require_one_of("rules", name, tuple(known))
    try:
        return Rules(**rules)
    except (ValueError, TypeError) as error:
        raise _wrong("rules", dict(rules), f"does not hold: {error}") from error


def _shape_text(name: str, value: Any) -> str | None:
    """The shapes as text, from a list, a text, or the file that a text names."""
    if value is None or (isinstance(value, str) and not value.strip().startswith("@")):
        return value
    if not isinstance(value, (str, list, tuple)):
        raise _wrong(name, value, "is a list such as [[8, 2048]]")
    parse = PrefillShape.parse if name == "prefill_shapes" else DecodeShape.parse
    return " ".join(str(parse(shape)) for shape in words(value, name))


def _refuse_beside(additional: Mapping[str, Any]) -> None:
    """Settings of ours that do not stand under "spyre": nobody would read them. Any other key may
    be another plugin's."""
    known = {field.name for field in fields(SpyreConfig)}
    for key in additional:
        if key in known:
            raise ValueError(
                f'additional_config has {key!r} beside "spyre", where nothing reads it: write '
                f'{{"spyre": {{"{key}": ...}}}}'
            )
        if key != "spyre" and difflib.get_close_matches(str(key).lower(), ["spyre"]):
            raise ValueError(f'additional_config has a key {key!r}: did you mean "spyre"?')


def _refuse_unknown(settings: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(SpyreConfig)]
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "leave it out."
            raise ValueError(
                f'additional_config["spyre"] has an unknown key {key!r}: {hint} '
                f"Known keys: {', '.join(known)}"
            )


def _from_environment(environment: Mapping[str, str], without: Mapping[str, Any]) -> dict[str, Any]:
    """The values for the keys that `without` lacks, as far as the environment has them."""
    found = obeyed(environment)
    values = _continuous_from_environment(found, environment, without)
    continuous = (values | dict(without)).get("batching") == "continuous"
    if continuous and (file := environment.get(SHAPES_FILE, "").strip()):
        values |= {name: f"@{file.removeprefix('@')}" for name in SHAPES if name not in without}
    if not continuous and "buckets" not in without:
        values["buckets"] = _buckets_from(environment, found)
    for name, (full, text) in found.items():
        key = OBEYED[name]
        if key in ("buckets", "batching", "rules") or key in without:
            continue
        if key == "compile_backend":
            values[key] = text
        elif key == "require_precompiled":
            values[key] = _flag(full, text)
        elif key == "max_load_processes":
            values[key] = _whole_number(full, text) or None  # 0: all
        elif key == "join_timeout_s":
            values[key] = 60 * _whole_number(full, text)
    if STEP_TIMEOUT in environment and "step_timeout_s" not in without:
        values["step_timeout_s"] = _whole_number(STEP_TIMEOUT, environment[STEP_TIMEOUT])
    return values


def _continuous_from_environment(
    found: Mapping[str, tuple[str, str]],
    environment: Mapping[str, str],
    without: Mapping[str, Any],
) -> dict[str, Any]:
    """Batching, rules, chunk and limit of continuous batching, where a name asks for it."""
    asked = [
        "=".join(found[name])
        for name in ("USE_CB", "USE_CHUNKED_PREFILL")
        if name in found and _flag(*found[name])
    ]
    if asked and "buckets" in without and "batching" not in without:
        raise ValueError(
            f"{asked[0]} asks for continuous batching and the settings name buckets, which are of "
            f"static batching: unset it, or leave the buckets out"
        )
    batching = without.get("batching", "continuous" if asked else "static")
    if batching != "continuous":
        return {}
    values: dict[str, Any] = {"batching": batching}
    rules = dict(without.get("rules") or {})
    if "CP_INTERLEAVE_STEPS" in found and not _flag(*found["CP_INTERLEAVE_STEPS"]):
        rules.setdefault("decode_between", 0)
    if "LONG_OUT_PRIO" in found:
        rules.setdefault("longest_first", _flag(*found["LONG_OUT_PRIO"]))
    if "PAUSING_ENABLED" in found:
        rules.setdefault("over_limit", "pause" if _flag(*found["PAUSING_ENABLED"]) else "hold")
    for name, key in CARD_LIMITS.items():
        text = environment.get(name, "").strip()
        if not text:
            continue
        if key == "max_batch_context_tokens":
            rules.setdefault(key, _whole_number(name, text))
        elif key not in without:
            values[key] = _whole_number(name, text)
    return values | ({"rules": rules} if rules else {})


def _buckets_from(
    environment: Mapping[str, str], found: Mapping[str, tuple[str, str]]
) -> BucketSet:
    """The buckets of the file that is named, else of the three lists; ValueError for both."""
    lists = [full for name, (full, _) in found.items() if OBEYED[name] == "buckets"]
    if not (file := environment.get(SHAPES_FILE, "").strip()):
        return _buckets_from_lists(found)
    if lists:
        raise ValueError(f"{SHAPES_FILE}={file} and {lists[0]} both name buckets: unset one")
    return BucketSet.parse(f"@{file.removeprefix('@')}")


def _buckets_from_lists(found: Mapping[str, tuple[str, str]]) -> BucketSet:
    """The buckets of the three lists, whichever way their names are spelt."""
    names = {OLD + name: spelt for name, spelt in found.items() if OBEYED[name] == "buckets"}
    try:
        return BucketSet.from_lists({name: text for name, (_, text) in names.items()})
    except ValueError as error:
        sentence = str(error)
        for name, (full, _) in names.items():
            sentence = sentence.replace(name, full)
        raise ValueError(sentence) from None


def _whole_number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} is not a whole number") from None


def _flag(name: str, text: str) -> bool:
    if text.lower() not in ("0", "1", "true", "false"):
        raise ValueError(f"{name}={text!r} is not a flag: write 0 or 1")
    return text.lower() in ("1", "true")


def _buckets(value: Any) -> BucketSet:
    if not isinstance(value, (str, list, tuple, BucketSet)):
        raise _wrong("buckets", value, "is a list of [batch_size, prompt_length, new_tokens]")
    return BucketSet.parse(value)


def _path(name: str, value: Any) -> Path | None:
    if value is not None and not isinstance(value, (str, Path)):
        raise _wrong(name, value, "is a path")
    try:
        return None if value is None else Path(value).expanduser().absolute()
    except RuntimeError:  # no HOME, and no entry in the table of users
        raise _wrong(name, value, "has a '~' but this user no home: write it in full") from None


def _device(text: str) -> str:
    """With the path of a table in full, where it is no shipped one: other processes may run
    elsewhere."""
    source = text.removeprefix(SIMULATED)
    if source == text or not source or source in NAMED or source.startswith(PREFIX):
        return text
    return f"{SIMULATED}{_path('device', source)}"


def _require_one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1)
        raise _wrong(name, value, f"is one of {', '.join(known)}", near[0] if near else None)


def _is_number(value: Any, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def _wrong(name: str, value: Any, rule: str, near: str | None = None) -> ValueError:
    hint = f"; did you mean {near!r}?" if near else ""
    return ValueError(f'additional_config["spyre"]: {name} {value!r} is wrong, it {rule}{hint}')
