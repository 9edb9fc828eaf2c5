"""Sums over the ranks of vLLM's own models."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor
from vllm.distributed.device_communicators.base_device_communicator import (
    DeviceCommunicatorBase,
)


class SpyreCommunicator(DeviceCommunicatorBase):
    """gloo, as operations that a graph may hold: those must not write into what they are given."""

    def all_reduce(self, input_: Tensor) -> Tensor:
        total = input_.clone()
        dist.all_reduce(total, group=self.device_group)
        return total
