"""What is checked: an engine and a client, real or made up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from spyre_bench.validate import server as serving
from spyre_bench.validate.constants import Constants
from spyre_bench.validate.others import CpuTimes
from spyre_bench.workload.workload import Workload


class Served(NamedTuple):
    """A workload as it went."""

    result: dict[str, Any]  # of the client, in vLLM's form with all arrays
    passes: Any  # of the engine, with what the scheduler knew, as its constants read them
    others: float = 0.0  # cores that other processes kept busy meanwhile


class Host(Protocol):
    """An engine and a client."""

    def serve(self, workload: Workload, name: str) -> Served:
        """Sends the requests at their times, each answered in full."""
        ...

    def warmed(self) -> Constants:
        """The seconds of its warmup, by which its scheduler decides, as if passes took them."""
        ...


@dataclass(frozen=True)
class LiveHost(ABC):
    """A real server and a real client, whose results stay in the directory."""

    server: serving.Server
    directory: Path

    def serve(self, workload: Workload, name: str) -> Served:
        before, times = self.count(), CpuTimes.now(*self.server.sessions)
        result = serving.replay(self.server, workload, self.directory, name)
        others = CpuTimes.now(*self.server.sessions).others_since(times)
        return Served(result, self.passes(before), others)

    @abstractmethod
    def warmed(self) -> Constants:
        """See `Host`."""

    @abstractmethod
    def count(self) -> int:
        """Passes in the server's log."""

    @abstractmethod
    def passes(self, since: int = 0) -> Any:
        """Those of the log but the first so many."""
