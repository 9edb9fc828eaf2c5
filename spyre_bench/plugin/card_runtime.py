"""What the card's runtime reads from the environment of a rank, set in one place.

The names are those of IBM's stack (docs/SPYRE_CARD.md#runtime). Untested on a card; a fake runtime
in the tests reads them.
"""

import os
from collections.abc import MutableMapping

from spyre_bench.engine.parallel import Rank


def prepare(rank: Rank, threads: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Tells the runtime which card is whose, and how many threads a rank may compile with.

    Raises ValueError where the address of a card is not known. Who has set the threads keeps them.
    """
    if rank.tp > 1 and environment.get("FLEX_COMPUTE", "SENTIENT") == "SENTIENT":
        for other in range(rank.tp):
            name = f"AIU_WORLD_RANK_{other}"
            if not environment.get(name):
                raise ValueError(
                    f"tensor parallel size {rank.tp} needs a card for rank {other}, and {name} is "
                    f"not set: set it to that card's PCI address, as the device plugin does"
                )
    environment["RANK"] = environment["LOCAL_RANK"] = str(rank.rank)
    environment["WORLD_SIZE"] = environment["AIU_WORLD_SIZE"] = str(rank.tp)
    environment.setdefault("DT_PARALLEL_THREADS", str(threads))
