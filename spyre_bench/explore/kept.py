"""The panels over what was measured, from the tables that a run kept: nothing runs again."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spyre_bench.explore import passes, startup, trust

if TYPE_CHECKING:
    from ipywidgets import Box


def first_look(folder: str, **settings: Any) -> Box:
    """Of the passes in the folder of 00_first_look in a run."""
    import pandas as pd

    table = Path(folder) / "tables" / "passes.csv"
    frame = pd.read_csv(table, converters={"prompt_tokens": ast.literal_eval})
    return passes.first_look(frame, **settings)


def what_warmup_costs(folder: str, **settings: Any) -> Box:
    """Of the starts in the folder of 02_what_does_warmup_cost in a run."""
    import pandas as pd

    from spyre_bench.shapes import Bucket
    from spyre_bench.studies.startup import predict

    starts = pd.read_csv(Path(folder) / "tables" / "starts.csv")
    fitted = starts.loc[starts["role"] == "fitted", "bucket"]
    return startup.what_warmup_costs(predict(starts), max(map(Bucket.parse, fitted)), **settings)


def trust_the_simulator(folder: str, **settings: Any) -> Box:
    """Of the requests in the folder of 05_can_we_trust_the_simulator in a run."""
    import pandas as pd

    requests = pd.read_csv(Path(folder) / "tables" / "requests.csv")
    return trust.trust_the_simulator(requests, **settings)
