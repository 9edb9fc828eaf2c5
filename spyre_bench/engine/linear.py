"""Matrix products with weights that oneDNN has packed once, at load.

Shapes: M rows (tokens of the pass), K inputs, N outputs.
"""

from __future__ import annotations

import torch
from fms.modules.head import LinearClassificationHead
from torch import Tensor, nn

PACKED_ROWS = 2, 8
"""oneDNN lays weights out for a number of rows. More rows than the last are compute-bound in any
layout and gained nothing; the layout for one row is slower for that very row, and for its prefill,
where memory is fast (docs/LOG.md)."""

_product = torch.ops.mkldnn._linear_pointwise.default

# Inductor takes oneDNN's own product only where the packed weight is a constant of the graph, and
# the layers of a model share one graph: for it, this is a product that it knows nothing of.
_library = torch.library.Library("spyre_bench", "DEF")
_library.define("packed_linear(Tensor x, Tensor packed, Tensor? bias) -> Tensor")
_library.impl(
    "packed_linear",
    lambda x, packed, bias: _product(x, packed, bias, "none", [], ""),
    "MkldnnCPU",
)


@torch.library.register_fake("spyre_bench::packed_linear", lib=_library)
def _(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], packed.shape[0]))


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine has oneDNN's products in this type."""
    supported = {
        torch.float32: lambda: True,
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return torch.backends.mkldnn.is_available() and supported[dtype]()


def pack(weight: Tensor, rows: int) -> Tensor:
    """A weight [N, K] in oneDNN's layout for about so many rows."""
    least, most = PACKED_ROWS
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), min(max(rows, least), most))


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K] times a packed weight [N, K] transposed: [..., N]."""
    return torch.ops.spyre_bench.packed_linear.default(x, packed, bias)


class PackedLinear(nn.Module):
    """A linear layer without its dense weight."""

    def __init__(self, linear: nn.Linear, rows: int):
        super().__init__()
        self.packed = pack(linear.weight, rows)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return packed_linear(x, self.packed, self.bias)


def pack_linears(model: nn.Module, rows: int) -> None:
    """Replaces the model's linear layers and its head by packed ones for passes of about so many
    rows. Their dense weights are freed, but for one that the embedding holds too."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) in (nn.Linear, LinearClassificationHead):
                setattr(module, name, PackedLinear(child, rows))
