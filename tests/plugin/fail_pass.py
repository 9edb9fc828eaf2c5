"""A logits processor that fails, as a bug in a pass of the engine would."""

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor


class FailPass(AdapterLogitsProcessor):
    """`extra_args={"fail_at": n}` raises where the request would get its token n (from 0)."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params):
        place = (params.extra_args or {}).get("fail_at")
        if place is None:
            return None

        def fail(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            if len(output_ids) >= place:
                raise RuntimeError("injected by a test")
            return logits

        return fail
