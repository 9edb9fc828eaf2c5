"""The blocks of a paged KV cache: who holds them, which prefixes they keep, which dies first. The
order is that of vLLM 0.32's `BlockPool`, block by block (tests/plugin/test_continuous_hosts.py)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from itertools import takewhile


class BlockPool:
    """Blocks 1 to `blocks` - 1; block 0 is the dummy, which nobody owns.

    A block that nobody holds is free, and keeps its prefix until it is taken. Taken is the one that
    was free longest, but before all others those without a prefix, the last given back first.
    """

    def __init__(self, blocks: int):
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, blocks))
        self._holders = [0] * blocks
        self._prefix: list[Hashable | None] = [None] * blocks
        self._cached: dict[Hashable, dict[int, None]] = {}

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    @property
    def cached_blocks(self) -> int:
        """Blocks that keep a prefix, held or free."""
        return sum(map(len, self._cached.values()))

    def hit(self, prefixes: Sequence[Hashable]) -> list[int]:
        """The blocks that keep the longest cached run of these prefixes, each of which stands for
        all tokens up to a block's end."""
        cached = takewhile(bool, map(self._cached.get, prefixes))
        return [next(iter(blocks)) for blocks in cached if blocks]

    def held(self, blocks: Sequence[int]) -> int:
        """How many of them somebody holds."""
        return sum(self._holders[block] > 0 for block in blocks)

    def hold(self, blocks: Sequence[int]) -> None:
        """One more holder of each, of a prefix hit."""
        for block in blocks:
            if not self._holders[block]:
                del self._free[block]
            self._holders[block] += 1

    def take(self, count: int) -> list[int]:
        """So many free blocks, for one holder; what they kept is forgotten. Raises ValueError where
        there are fewer."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks are asked for and {len(self._free)} are free")
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._forget(block)
            self._holders[block] = 1
        return blocks

    def keep(self, block: int, prefix: Hashable) -> None:
        """From now on the block keeps a prefix."""
        self._prefix[block] = prefix
        self._cached.setdefault(prefix, {})[block] = None

    def give_back(self, blocks: Sequence[int]) -> None:
        """One holder less of each block of a request, in the order of its table: of a prefix the
        end dies first."""
        first: list[int] = []
        for block in reversed(blocks):
            self._holders[block] -= 1
            assert self._holders[block] >= 0, f"block {block} was given back twice"
            if self._holders[block]:
                continue
            self._free[block] = None
            if self._prefix[block] is None:
                first.append(block)
        for block in reversed(first):
            self._free.move_to_end(block, last=False)

    def _forget(self, block: int) -> None:
        prefix, self._prefix[block] = self._prefix[block], None
        if prefix is not None:
            blocks = self._cached[prefix]
            del blocks[block]
            if not blocks:
                del self._cached[prefix]
