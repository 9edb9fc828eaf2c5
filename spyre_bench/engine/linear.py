"""Matrix products of a decode pass, written so that Inductor streams the weights.

Shapes: M rows (tokens of the pass), K inputs, N outputs.
"""

import torch
from fms.modules.head import LinearClassificationHead
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


class ChunkedHead(LinearClassificationHead):
    """The output head, which runs outside the compiled layer, in pieces that stay in cache.

    The library's kernel for few rows packs the weights first; packed whole they go through
    memory twice.
    """

    CHUNK_BYTES = 2**20

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.numel() // x.shape[-1]
        if not 2 <= rows <= MAX_STREAMED_ROWS or torch.compiler.is_compiling():
            return F.linear(x, self.weight, self.bias)
        outputs = max(1, self.CHUNK_BYTES // self.weight[0].nbytes)
        out = torch.cat([F.linear(x, part) for part in self.weight.split(outputs)], -1)
        return out if self.bias is None else out + self.bias


def streamed_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [M, K] times weight [N, K] transposed: [M, N]."""
    outputs, inputs = weight.shape
    # as_strided makes Inductor store x first: it would else work x out anew for every output
    x = x.contiguous().as_strided(x.shape, (inputs, 1))
    streams = next(count for count in STREAMS if outputs % count == 0)
    parts = weight.view(streams, outputs // streams, inputs)
    return torch.stack(
        [torch.cat([(part * row).sum(-1) for part in parts.unbind()]) for row in x.unbind()]
    )


def stream_linears(model: nn.Module) -> None:
    """Turns the model's plain linear layers and its head into streamed ones, in place."""
    streamed = {nn.Linear: StreamedLinear, LinearClassificationHead: ChunkedHead}
    for module in model.modules():
        module.__class__ = streamed.get(type(module), type(module))
