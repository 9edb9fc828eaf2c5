"""The environment names of existing Spyre deployments, and what becomes of each.

Two spellings: `VLLM_SPYRE_*`, and `SENDNN_INFERENCE_*` since the upstream plugin's 2.0. Inside
this module a name goes by what follows the prefix.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

OLD, NEW = "VLLM_SPYRE_", "SENDNN_INFERENCE_"

OBEYED = {
    "WARMUP_BATCH_SIZES": "buckets",
    "WARMUP_PROMPT_LENS": "buckets",
    "WARMUP_NEW_TOKENS": "buckets",
    "DYNAMO_BACKEND": "compile_backend",
    "REQUIRE_PRECOMPILED_DECODERS": "require_precompiled",
    "MAX_LOAD_PROCESSES": "max_load_processes",
    "GLOO_TIMEOUT_MINUTES": "join_timeout_s",
    "USE_CB": "batching",
    "USE_CHUNKED_PREFILL": "batching",
    "CP_INTERLEAVE_STEPS": "rules",
    "LONG_OUT_PRIO": "rules",
    "PAUSING_ENABLED": "rules",
}
"""Name -> the key of `SpyreConfig` that it fills in where the settings are silent."""

REFUSED = {
    "REQUIRE_KNOWN_CONFIG": "there is no list of known configurations to hold the model against: "
    "unset it",
}
"""Name -> why no engine starts while it is on."""

_MULTIMODAL = "models of text only are served"
WITHOUT_EFFECT = {
    "PERF_METRIC_LOGGING_ENABLED": ("0", "pass_log writes a line for each pass"),
    "PERF_METRIC_LOGGING_DIR": ("", "pass_log names a file"),
    "BENCH_METRICS_ENABLED": ("0", "see /metrics and pass_log"),
    "OVERRIDE_SIGNALS_HANDLER": ("1", "signals always end the engine"),
    "UPDATE_THREAD_CONFIG": ("1", "vLLM divides the cores unless OMP_NUM_THREADS is set"),
    "NUM_CPUS": ("0", "set OMP_NUM_THREADS for each rank's threads"),
    "WORKER_LOG_REDIRECT_DIR": ("", "ranks write to the server's own output"),
    "SIMPLE_COMPILE_BACKEND": ("eager", "vLLM's small functions always run eager"),
    "ENABLE_PROMPT_LOGPROBS": ("0", "prompt_logprobs are refused by request"),
    "MODEL_CONFIG_FILE": ("", "no configuration is prescribed for a model"),
    "CPU_MM_DTYPE": ("", _MULTIMODAL),
    "MM_DEVICE": ("auto", _MULTIMODAL),
    "ASYNC_MM_ENCODER": ("0", _MULTIMODAL),
    "TP_MM_SHARING": ("0", _MULTIMODAL),
}
"""Name -> the value that asks for nothing else than what happens anyway, and what there is."""

OF_THE_OTHER = {"static": ("continuous", "rules"), "continuous": ("static", "buckets")}
"""Batching -> the other kind, and the key in `OBEYED` of what only that has."""

CARD_LIMITS = {
    "VLLM_DT_CHUNK_LEN": "chunk_tokens",
    "VLLM_DT_MAX_BATCH_SIZE": "max_num_seqs",
    "VLLM_DT_MAX_BATCH_TKV_LIMIT": "max_batch_context_tokens",
}
"""Limits of the compiler for continuous batching, by their whole names, and the key of
`SpyreConfig` or of its rules that each fills in. Under static batching buckets say what there is.
"""
CONTEXT_LIMIT = "VLLM_DT_MAX_CONTEXT_LEN"  # upstream sets it from --max-model-len, as we do

KNOWN = (*OBEYED, *REFUSED, *WITHOUT_EFFECT)
NAMES = (*(prefix + name for prefix in (OLD, NEW) for name in KNOWN), *CARD_LIMITS, CONTEXT_LIMIT)
"""All names that mean something to a Spyre deployment, in full."""

BACKEND_ALIASES = {"sendnn_decoder": "sendnn"}  # upstream's default until it was renamed


def obeyed(environment: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Of the names in `OBEYED` those that are set: the name in full as it was spelt, and its text.

    An empty text counts as not set. Raises ValueError for a name in `REFUSED` that is on, and for
    two spellings that disagree.
    """
    for name, why in REFUSED.items():
        full, text = _spelt(name, environment)
        if text.lower() not in ("", "0", "false"):
            raise ValueError(f"the spyre backend does not support {full}={text}: {why}")
    found = {name: _spelt(name, environment) for name in OBEYED}
    return {name: (full, text) for name, (full, text) in found.items() if text}


def warnings(environment: Mapping[str, str], batching: str = "static") -> list[str]:
    """One sentence for each name that is set and changes nothing, unknown ones among them."""
    sentences = []
    for name, (natural, instead) in WITHOUT_EFFECT.items():
        full, text = _spelt(name, environment)
        if text.lower() not in ("", natural, {"0": "false", "1": "true"}.get(natural, natural)):
            sentences.append(f"{full}={text} has no effect: {instead}.")
    other, key_of_other = OF_THE_OTHER[batching]
    for name, key in OBEYED.items():
        full, text = _spelt(name, environment)
        if key == key_of_other and text:
            sentences.append(f"{full}={text} has no effect: it is a setting of {other} batching.")
    idle = {CONTEXT_LIMIT: "--max-model-len and the shapes say how long a context is"}
    if batching == "static":
        idle |= dict.fromkeys(CARD_LIMITS, "the buckets say what is compiled")
    for full, instead in idle.items():
        if text := environment.get(full, "").strip():
            sentences.append(f"{full}={text} has no effect: {instead}.")
    for full in sorted(environment):
        if full.startswith((OLD, NEW)) and full not in NAMES:
            near = difflib.get_close_matches(full, NAMES, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else "its spelling may be wrong."
            sentences.append(f"{full} is unknown and has no effect: {hint}")
    return sentences


def _spelt(name: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """The name in full as it is set, and its text; the old spelling and "" where it is not set."""
    found = {
        prefix + name: text
        for prefix in (OLD, NEW)
        if (text := environment.get(prefix + name, "").strip())
    }
    if len(set(found.values())) > 1:
        settings = " and ".join(f"{full}={text}" for full, text in found.items())
        raise ValueError(f"{settings} are two spellings of one setting: unset one of them")
    return next(iter(found.items()), (OLD + name, ""))
