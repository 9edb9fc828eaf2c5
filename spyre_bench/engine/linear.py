"""Matrix products of a decode pass, written so that Inductor streams the weights.

Shapes: M rows (tokens of the pass), K inputs, N outputs.
"""

import torch
from torch import nn
from torch.nn import functional as F

MAX_STREAMED_ROWS = 8
"""Above this many rows the product is compute-bound, and the library's kernel is the better."""

STREAMS = (4, 2, 1)
"""Weight rows read side by side: independent sums hide the latency of each addition."""


class StreamedLinear(nn.Linear):
    """A linear layer that, compiled for few rows, reads each weight exactly once.

    The library's kernels for M = 2..8 rows reach half of the memory's bandwidth at best
    (docs/LOG.md). Written as sums of products that share their reads, Inductor fuses all of
    them into one loop over the weights.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.numel() // x.shape[-1]
        if not 2 <= rows <= MAX_STREAMED_ROWS or not torch.compiler.is_compiling():
            return F.linear(x, self.weight, self.bias)
        out = streamed_product(x.reshape(rows, -1), self.weight)
        out = out.view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def streamed_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [M, K] times weight [N, K] transposed: [M, N]."""
    outputs, inputs = weight.shape
    streams = next(count for count in STREAMS if outputs % count == 0)
    parts = weight.view(streams, outputs // streams, inputs)
    return torch.stack(
        [torch.cat([(part * row).sum(-1) for part in parts.unbind()]) for row in x.unbind()]
    )


def stream_linears(model: nn.Module) -> None:
    """Turns every plain linear layer of the model into a streamed one, in place."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = StreamedLinear
