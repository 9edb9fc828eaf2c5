"""A logits processor that makes a pass of the engine fail, as a bug in it would."""

from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from spyre_bench.engine.causal_lm import SpyreCausalLM
from spyre_bench.engine.paged_causal_lm import PagedCausalLM


class FailPass(AdapterLogitsProcessor):
    """`extra_args={"fail_at": n}` makes the pass raise that follows the request's token n."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params):
        place = (params.extra_args or {}).get("fail_at")
        if place is None:
            return None
        if place == 0:
            SpyreCausalLM.prefill = PagedCausalLM.prefill = fail

        def fail_later(output_ids, logits):
            if len(output_ids) >= place - 1:
                SpyreCausalLM.decode = PagedCausalLM.decode = fail
            return logits

        return fail_later


def fail(*args):
    raise RuntimeError("injected by a test")
