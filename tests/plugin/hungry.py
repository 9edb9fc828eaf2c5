"""A logits processor that leaves the rank it is built in no memory, as a card or a host too small
would."""

import resource

import psutil
import torch
import torch.distributed as dist
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

HUNGRY = 1


class Hungry(AdapterLogitsProcessor):
    def __init__(self, vllm_config, device, is_pin_memory):
        super().__init__(vllm_config, device, is_pin_memory)
        if dist.get_rank() == HUNGRY:
            used = psutil.Process().memory_info().vms
            resource.setrlimit(resource.RLIMIT_AS, (used, used))
            torch.empty(2**28)  # what a pass of a larger bucket would ask for

    def is_argmax_invariant(self) -> bool:
        return True

    def new_req_logits_processor(self, params):
        return None
