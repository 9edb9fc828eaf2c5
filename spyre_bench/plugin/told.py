"""What a request may tell a simulated device, which has no model that would know when to end, and,
on a virtual clock, when it comes and goes: vLLM's `extra_args`, or `vllm_xargs` over HTTP."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

    from spyre_bench.plugin.config import SpyreConfig

PREFIX = "spyre_"


@dataclass(frozen=True)
class Told:
    """Of one request."""

    output_tokens: int | None = None  # the last of them ends it; None: as many as max_tokens
    arrival_s: float | None = None  # on the virtual clock; None: when the engine reads it
    leaves_s: float | None = None  # ... its client hangs up; None: never

    @classmethod
    def of(cls, params: SamplingParams) -> Told:
        """What `require_told` has let through."""
        said = _said(params.extra_args)
        return cls(**{name: said[name] for name in NAMES if name in said})


NAMES = tuple(one.name for one in fields(Told))
NOTHING = Told()


def require_told(params: SamplingParams, config: SpyreConfig, has_tokenizer: bool) -> None:
    """Raises ValueError, with what to do, for what this engine cannot be told. vLLM has not yet
    said which token ends the request; its tokenizer knows one."""
    said = _said(params.extra_args)
    if not said:
        return
    names = {PREFIX + name: value for name, value in said.items()}
    if config.device is None:
        raise ValueError(
            f"extra_args {', '.join(names)} are for a simulated device, and this one computes: "
            f'leave them out, or start with "device": "simulated:..."'
        )
    for name, value in said.items():
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {PREFIX}{near[0]}?" if near else f"known: {_known()}"
            raise ValueError(f"extra_args {PREFIX}{name} is unknown: {hint}")
        if name != "output_tokens" and config.clock != "virtual":
            raise ValueError(
                f"extra_args {PREFIX}{name} are seconds of a virtual clock and this engine has "
                f"the system's: leave it out and send the request then"
            )
        _require_number(name, value)
    arrival_s, leaves_s = said.get("arrival_s", 0), said.get("leaves_s", math.inf)
    if leaves_s < arrival_s:
        raise ValueError(
            f"extra_args {PREFIX}leaves_s={leaves_s} is before its {PREFIX}arrival_s={arrival_s}: "
            f"give a later one"
        )
    wanted = said.get("output_tokens")
    ends = params.stop_token_ids or (has_tokenizer and not params.ignore_eos)
    if wanted is not None and not ends and wanted != params.max_tokens:
        raise ValueError(
            f"extra_args {PREFIX}output_tokens={wanted} needs a token that ends the request: "
            f"leave out ignore_eos, or give stop_token_ids"
        )


def ends_with(params: SamplingParams) -> int | None:
    """A token after which vLLM ends the request; None where nothing but its length does."""
    if params.eos_token_id is not None:
        return params.eos_token_id
    return min(params.stop_token_ids or (), default=None)


def _require_number(name: str, value: Any) -> None:
    whole = name == "output_tokens"
    wanted = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted) or not whole <= value < math.inf:
        rule = "a whole number above 0" if whole else "a number of seconds, 0 or more"
        raise ValueError(f"extra_args {PREFIX}{name}={value!r} is wrong: give {rule}")


def _said(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    if not extra_args:
        return {}
    return {
        name.removeprefix(PREFIX): value
        for name, value in extra_args.items()
        if name.startswith(PREFIX)
    }


def _known() -> str:
    return ", ".join(PREFIX + name for name in NAMES)
