"""What is chosen, as `vllm serve --additional-config` takes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from spyre_bench.policy.continuous import RULES, Rules
from spyre_bench.policy.static import Policy
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import Bucket

PLAIN = Policy()


def of_buckets(buckets: Iterable[Bucket], policy: Policy = PLAIN) -> dict[str, Any]:
    """The buckets of static batching; and of the policy what no server does unasked."""
    sizes = [[it.batch_size, it.prompt_length, it.new_tokens] for it in buckets]
    return {"spyre": {"buckets": sizes, **_own(_named(policy), _named(PLAIN))}}


def of_shapes(shapes: ShapeSet, rules: Rules) -> dict[str, Any]:
    """The shapes of continuous batching; and of the rules those that no server goes by unasked."""
    own = _own(asdict(rules), asdict(RULES))
    return {"spyre": shapes.setting | ({"rules": own} if own else {})}


def _named(policy: Policy) -> dict[str, Any]:
    """By the names that a server has for them: its policy is a word."""
    values = asdict(policy)
    return {"policy": values.pop("name"), **values}


def _own(values: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != usual[name]}
