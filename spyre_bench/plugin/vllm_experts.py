"""Experts of vLLM's own models, in products whose shapes do not hang on the routing.

vLLM leaves the computing of experts to kernels of the platform. `PassExperts` takes the place of
its runner once the weights are there.

Shapes: M tokens of a pass, h hidden size, E experts, k experts a token, i width of an expert on
this rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.fused_moe.router.custom_routing_router import CustomRoutingRouter
from vllm.model_executor.layers.fused_moe.router.fused_topk_bias_router import FusedTopKBiasRouter
from vllm.model_executor.layers.fused_moe.router.fused_topk_router import FusedTopKRouter
from vllm.model_executor.layers.fused_moe.router.grouped_topk_router import GroupedTopKRouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
ROUTERS = (FusedTopKRouter, FusedTopKBiasRouter, GroupedTopKRouter, CustomRoutingRouter)
SCORES = {"softmax": lambda x: x.softmax(-1), "sigmoid": torch.sigmoid}


class PassExperts(nn.Module):
    """The experts of one layer. Raises ValueError for a routing, an activation or a transform that
    is not computed here."""

    def __init__(self, runner: MoERunner):
        super().__init__()
        router, experts = runner.router, runner.routed_experts
        activation = experts.activation.value
        scoring = getattr(router, "scoring_func", "softmax")
        _refuse(
            {
                f"experts run by {type(runner).__name__}": type(runner) is not MoERunner,
                f"routing by {type(router).__name__}": type(router) not in ROUTERS,
                "routing by a table of tokens": getattr(router, "_hash_indices_table", None)
                is not None,
                f"scores of experts by {scoring}": scoring not in SCORES,
                "a gate of shared experts in the router": runner._fse_fuse_gate,
                f"experts with activation {activation!r}": activation not in ACTIVATIONS,
                "weights of the router on the experts' input": experts.apply_router_weight_on_input,
                "transforms around the experts": runner.routed_input_transform is not None
                or runner.routed_output_transform is not None,
                "experts with biases": runner.moe_config.has_bias,
                "expert parallelism": experts.expert_map is not None,
            }
        )
        self.moe_config = runner.moe_config  # some models ask for it
        self.top_k = router.top_k
        self.renormalize = router.renormalize
        self.scores = SCORES[scoring]
        self.bias = getattr(router, "e_score_correction_bias", None)  # [E], for the choice alone
        self.groups = _groups(router)
        self.weight_scale = getattr(router, "routed_scaling_factor", 1.0)
        self.custom = getattr(router, "custom_routing_function", None)
        self.activation = ACTIVATIONS[activation]
        self.scale = runner.routed_scaling_factor
        self.gate = runner.gate
        shared = runner.shared_experts
        self.shared = None if shared is None else shared._layer
        self.sums = self.moe_config.tp_size > 1 and not self.moe_config.skip_final_all_reduce
        self.gate_up = experts.w13_weight  # [E, 2 * i, h]
        self.down = experts.w2_weight  # [E, h, i]

    def forward(self, hidden_states: Tensor, router_logits: Tensor, *_: Any, **__: Any) -> Tensor:
        """Hidden states [M, h], logits of the router [M, E] -> [M, h]."""
        if self.gate is not None:
            router_logits, _ = self.gate(hidden_states)
        weights, experts = self._route(hidden_states, router_logits)
        weights = weights.to(hidden_states.dtype)
        tokens, count = hidden_states.shape[0], self.gate_up.shape[0]
        if tokens * self.top_k < count:
            out = self._chosen(hidden_states, weights, experts)
        else:
            spread = torch.zeros(tokens, count, dtype=weights.dtype)
            out = self._all(hidden_states, spread.scatter_add(1, experts, weights))
        out = out * self.scale
        if self.shared is not None:
            out = out + self.shared(hidden_states)
        return tensor_model_parallel_all_reduce(out) if self.sums else out

    def _route(self, hidden_states: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and number of each token's experts, [M, k] each."""
        if self.custom is not None:
            weights, experts = self.custom(
                hidden_states=hidden_states,
                gating_output=logits,
                topk=self.top_k,
                renormalize=self.renormalize,
            )
            return weights, experts.long()
        scores = self.scores(logits.float())
        choice = scores if self.bias is None else scores + self.bias
        if self.groups is not None:
            choice = self._of_the_best_groups(choice)
        experts = choice.topk(self.top_k).indices
        weights = scores.gather(1, experts)
        if self.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights * self.weight_scale, experts

    def _of_the_best_groups(self, choice: Tensor) -> Tensor:
        """[M, E] without the experts of other groups. A group is as good as its best expert, with a
        bias as its best two."""
        count, best = self.groups
        grouped = choice.unflatten(-1, (count, -1))
        worth = grouped.amax(-1) if self.bias is None else grouped.topk(2).values.sum(-1)
        taken = torch.zeros_like(worth, dtype=torch.bool).scatter(1, worth.topk(best).indices, True)
        return grouped.masked_fill(~taken[..., None], float("-inf")).flatten(1)

    def _all(self, x: Tensor, weights: Tensor) -> Tensor:
        """Every token through every expert, weighted [M, E]: no expert's weights are read twice."""
        inner = self._activated(torch.einsum("mh,ejh->emj", x, self.gate_up))
        return torch.einsum("emi,ehi,me->mh", inner, self.down, weights)

    def _chosen(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """Each token through its own experts, of which there are fewer than all."""
        inner = self._activated(torch.einsum("mh,mkjh->mkj", x, self.gate_up[experts]))
        out = torch.einsum("mki,mkhi->mkh", inner, self.down[experts])
        return (out * weights[..., None]).sum(1)

    def _activated(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return self.activation(gate) * up


def _groups(router: Any) -> tuple[int, int] | None:
    """Groups of experts and how many of them a token may use; None where they decide nothing."""
    count, best = getattr(router, "num_expert_group", 0), getattr(router, "topk_group", 0)
    experts = router.global_num_experts
    return (count, best) if 1 < count < experts and experts % count == 0 else None


def replace_experts(model: nn.Module) -> None:
    """Puts `PassExperts` where vLLM's runners of experts are."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, MoERunner):
                setattr(module, name, PassExperts(child))


def _refuse(asked: dict[str, bool]) -> None:
    for feature, is_asked in asked.items():
        if is_asked:
            raise ValueError(
                f"the spyre backend does not compute {feature} in vLLM's model code: serve another "
                f"model"
            )
