"""A custom logits processor, as a user would pass it to vLLM."""

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor


class ForceToken(AdapterLogitsProcessor):
    """`extra_args={"force_token": t}` makes every token t."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params):
        token = (params.extra_args or {}).get("force_token")
        if token is None:
            return None

        def force(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            logits[:] = float("-inf")
            logits[token] = 0.0
            return logits

        return force
