"""Rules that several stacks have: each names the list it is of, what happens to what breaks it, and
where that was read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spyre_bench.choose.stack import By, Deployment, Rule, Sizes


def unique(name: str, then: str, source: str) -> Rule:
    def broken(sizes: Sizes, _: Deployment) -> Iterator[str]:
        twice = sorted({it for it in sizes[name] if list(sizes[name]).count(it) > 1})
        if twice:
            yield f"{name} {listed(twice)} are there twice and {then}: leave one out"

    return Rule(f"{name} are distinct", source, broken)


def at_most(name: str, limit: By, what: str, then: str, source: str) -> Rule:
    def broken(sizes: Sizes, deployment: Deployment) -> Iterator[str]:
        above = sorted(it for it in sizes[name] if it > limit(deployment))
        if above:
            yield f"{name} {listed(above)} are above {what} {limit(deployment)} and {then}"

    return Rule(f"{name} are at most {what.rstrip(',')}", source, broken)


def reaches(name: str, limit: By, what: str, then: str, source: str) -> Rule:
    def broken(sizes: Sizes, deployment: Deployment) -> Iterator[str]:
        largest, needed = max(sizes[name]), limit(deployment)
        if largest < needed:
            yield f"the largest of {name} is {largest}, below {what} {needed}: {then}; add {needed}"

    return Rule(f"{name} reach {what.rstrip(',')}", source, broken)


def ends_at(name: str, limit: By, what: str, source: str) -> Rule:
    def broken(sizes: Sizes, deployment: Deployment) -> Iterator[str]:
        if max(sizes[name]) != limit(deployment):
            yield (
                f"the largest of {name} is {max(sizes[name])} and must be {what} "
                f"{limit(deployment)}: the server refuses to start otherwise"
            )

    return Rule(f"the largest of {name} is {what.rstrip(',')}", source, broken)


def ascending(name: str, then: str, source: str) -> Rule:
    def broken(sizes: Sizes, _: Deployment) -> Iterator[str]:
        if list(sizes[name]) != sorted(sizes[name]):
            yield f"{name} are not in ascending order and {then}: sort them"

    return Rule(f"{name} ascend", source, broken)


def multiples(name: str, step: By, what: str, then: str, source: str) -> Rule:
    def broken(sizes: Sizes, deployment: Deployment) -> Iterator[str]:
        off = [it for it in sizes[name] if it % step(deployment)]
        if off:
            yield f"{name} {listed(off)} are no multiples of {what} {step(deployment)} and {then}"

    return Rule(f"{name} are multiples of {what.rstrip(',')}", source, broken)


def listed(sizes: Sequence[int], shown: int = 8) -> str:
    rest = f" and {len(sizes) - shown} more" if len(sizes) > shown else ""
    return ", ".join(map(str, sizes[:shown])) + rest
