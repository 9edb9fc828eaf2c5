"""What is wrong with a set of buckets, held against a workload: buckets that are never needed, and
requests that no bucket takes with the bucket that would; of shapes the context that would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from spyre_bench.cost.bucket_cost import BucketCost, CostModel
from spyre_bench.shape_set import BLOCK_TOKENS, ShapeSet, blocks_of
from spyre_bench.shapes import STICK_TOKENS, Bucket
from spyre_bench.workload.workload import Workload


@dataclass(frozen=True)
class Lint:
    """Findings; empty ones mean that nothing is wrong."""

    dominated: tuple[tuple[Bucket, Bucket], ...]  # a bucket, and one that makes it needless
    unreachable: tuple[Bucket, ...]  # fits no request of the workload
    uncovered: int  # requests that fit no bucket
    requests: int
    remedy: BucketCost | None  # the cheapest bucket that takes all uncovered requests

    def sentences(self) -> list[str]:
        """One sentence for each finding, with what to do."""
        sentences = [
            f"bucket {bucket} is needless: {other} takes all of its batches and costs no more; "
            f"leave {bucket} out"
            for bucket, other in self.dominated
        ]
        sentences += [
            f"bucket {bucket} fits no request of the workload: leave it out"
            for bucket in self.unreachable
        ]
        if self.uncovered:
            advice = (
                f"bucket {self.remedy.bucket} would take them and is the cheapest that does"
                f"{' (by extrapolation)' if self.remedy.extrapolated else ''}"
                if self.remedy
                else "no bucket of the cost model's range takes them all"
            )
            sentences.append(
                f"{self.uncovered} of {self.requests} requests fit no bucket and are rejected: "
                f"{advice}"
            )
        return sentences


def lint(workload: Workload, costs: Sequence[BucketCost], model: CostModel) -> Lint:
    """Holds the buckets against the requests; `model` prices the bucket that is proposed.

    A bucket is dominated where another one is as large in every dimension, and neither its prefill
    nor its decode pass takes longer.
    """
    fits = np.array([workload.fits(cost.bucket) for cost in costs])  # [buckets, requests]
    uncovered = np.logical_not(fits.any(axis=0))
    return Lint(
        dominated=tuple(_dominated(costs)),
        unreachable=tuple(
            cost.bucket for cost, some in zip(costs, fits, strict=True) if not some.any()
        ),
        uncovered=int(uncovered.sum()),
        requests=len(workload),
        remedy=_remedy(workload, uncovered, costs, model) if uncovered.any() else None,
    )


def lint_shapes(workload: Workload, shapes: ShapeSet) -> list[str]:
    """One sentence, with what to do, if the context of any request is longer than the shapes'."""
    context_tokens = workload.prompt_tokens + workload.max_tokens
    longer = context_tokens > shapes.max_model_len
    if not longer.any():
        return []
    length = blocks_of(int(context_tokens.max())) * BLOCK_TOKENS
    return [
        f"{longer.sum():,} of {len(workload):,} requests need a longer context than "
        f"{shapes.max_model_len} and are refused: a prefill and a decode shape with a context of "
        f"{length} would take them"
    ]


def _dominated(costs: Sequence[BucketCost]) -> Iterator[tuple[Bucket, Bucket]]:
    for cost in costs:
        for other in costs:
            dearer = other.prefill_s > cost.prefill_s or other.decode_s > cost.decode_s
            if other.bucket.dominates(cost.bucket) and not dearer:
                yield cost.bucket, other.bucket
                break


def _remedy(
    workload: Workload, uncovered: np.ndarray, costs: Sequence[BucketCost], model: CostModel
) -> BucketCost | None:
    """The smallest prompt length and output that cover all, at the batch size, of those in use,
    with the least seconds per request of a full batch; None where the model has no such bucket."""
    prompt_tokens = int(workload.prompt_tokens[uncovered].max())
    _, least_prompt, least_output = model.smallest
    prompt_length = max(least_prompt, -(-prompt_tokens // STICK_TOKENS) * STICK_TOKENS)
    new_tokens = max(least_output, int(workload.max_tokens[uncovered].max()))
    priced = []
    for batch_size in sorted({1} | {cost.bucket.batch_size for cost in costs}):
        try:
            priced.append(model.of(Bucket(batch_size, prompt_length, new_tokens)))
        except ValueError:  # out of the model's range
            continue
    passes = int(workload.output_tokens[uncovered].mean())
    return min(priced, key=lambda cost: cost.batch_s(passes) / cost.bucket.batch_size, default=None)
