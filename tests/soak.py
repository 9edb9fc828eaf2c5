"""`make soak`: a server under mixed traffic of real clients for a while, and what must hold after.

`vllm bench serve` and, where it is installed, guidellm send requests in rounds; meanwhile clients
leave in the middle, send what fits no bucket, and come in bursts; under continuous batching some
share prefixes too. At the end nothing is lost or doubled, the memory is flat, no pass has failed
(one that would compile raises), fixed prompts are answered as at the start, and no block of a cache
in blocks is held.
The last line is one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import openai
import psutil
import typer

from spyre_bench.checkpoints.find import model_directory
from spyre_bench.pass_log import read_passes, read_step_rows
from spyre_bench.validate.bench_client import BenchClient
from tests.plugin.servers import Server

BUCKETS = [[4, 64, 32], [4, 128, 16], [2, 256, 64]]
FIXED = {  # prompts of which each can run in one bucket only
    "4,64,32": ([11] * 40, 30),
    "4,128,16": ([12] * 100, 10),
    "2,256,64": ([13] * 200, 50),
}
CONTINUOUS = {
    "batching": "continuous",
    "prefill_shapes": "64,320 128,320",
    "decode_shapes": "4,320 8,192",
    "blocks": 14,  # so few that requests run out of them, and prefixes of them
    "rules": {"admission": "preempt"},
}
PREFIXES = [[30 + number] * 128 for number in range(3)]
SAMPLE_S = 5
SETTLED = 0.3  # share of the time after which memory is looked at


class Soak:
    """The server, its clients' own counts, and the samples of its memory."""

    def __init__(
        self,
        directory: Path,
        seconds: float,
        guidellm: Path | None,
        most_mb_a_minute: float,
        batching: str,
    ):
        self.is_continuous = batching == "continuous"
        self.most_mb_a_minute = most_mb_a_minute
        self.directory, self.seconds, self.end = directory, seconds, 0.0
        self.guidellm = guidellm
        self.pass_log = directory / "passes.jsonl"
        self.model = model_directory("smollm2")
        settings = CONTINUOUS if self.is_continuous else {"buckets": BUCKETS}
        settings = settings | {"pass_log": str(self.pass_log)}
        self.server = Server(self.model, settings, directory / "server.log")
        self.sent: Counter[str] = Counter()  # by client
        self.answered: Counter[str] = Counter()
        self.problems: list[str] = []
        self.unreported = 0  # requests that guidellm held when it ended
        self.figures: dict[str, float] = {}
        self.memory: list[tuple[float, float]] = []  # minutes since the start, MB
        self._lock = threading.Lock()

    def client(self, **chosen) -> openai.OpenAI:
        chosen = {"max_retries": 0, "timeout": 300} | chosen
        return openai.OpenAI(base_url=f"{self.server.url}/v1", api_key="none", **chosen)

    def count(self, name: str, sent: int = 1, answered: int = 0, problem: str = "") -> None:
        with self._lock:
            self.sent[name] += sent
            self.answered[name] += answered
            if problem:
                self.problems.append(f"{name}: {problem}")

    def going_on(self) -> bool:
        return time.monotonic() < self.end

    # --- the clients

    def vllm_rounds(self) -> None:
        """Rounds of the official benchmark client: Poisson, then a burst."""
        number = 0
        with contextlib.closing(BenchClient(self.directory / "vllm.log")) as bench:
            while self.going_on():
                self._vllm_round(bench, number)
                number += 1

    def _vllm_round(self, bench: BenchClient, number: int) -> None:
        out, problem = self.directory / f"vllm-{number}.json", ""
        try:
            bench.run(
                [
                    *("--base-url", self.server.url, "--model", self.server.model),
                    *("--tokenizer", str(self.model), "--dataset-name", "random"),
                    *("--random-input-len", "60", "--random-output-len", "14"),
                    *("--random-range-ratio", "0.9", "--num-prompts", "24", "--num-warmups", "0"),
                    *("--request-rate", "inf" if number % 3 == 2 else "1.5"),
                    *("--seed", str(number), "--save-result", "--disable-tqdm"),
                    *("--result-dir", str(self.directory), "--result-filename", out.name),
                ]
            )
        except ValueError as error:
            problem = str(error)
        completed = json.loads(out.read_text())["completed"] if out.exists() else 0
        if completed != 24:
            problem = problem or f"{completed} of 24 completed"
        self.count("vllm bench", 24, completed, problem and f"round {number}: {problem}")

    def guidellm_rounds(self) -> None:
        number = 0
        while self.guidellm and self.going_on():
            out = self.directory / f"guidellm-{number}.json"
            command = [
                str(self.guidellm),
                "run",
                "--disable-console",
                "--backend",
                f"kind=openai_http,target={self.server.url},model={self.server.model}",
                "--tokenizer",
                f"kind=hf_auto,model={self.model}",
                "--data",
                "kind=synthetic_text,prompt_tokens=40,output_tokens=12",
                "--profile",
                "kind=poisson,rate=0.5",
                "--constraint",
                "kind=max_requests,count=12",
                "--output",
                f"kind=json,path={out}",
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            completed, unreported = _of_guidellm(out)
            lost = completed + unreported < 12
            problem = f"{done.stdout[-500:]} {done.stderr[-1500:]}" if lost else ""
            self.count("guidellm", 12, completed, problem)
            self.unreported += unreported
            number += 1

    def leavers(self) -> None:
        """Clients that close the connection at any time."""
        rng, client = random.Random(1), self.client()
        while self.going_on():
            stay_s, started = rng.uniform(0, 2), time.monotonic()
            self.count("leavers")
            with client.completions.create(
                model=self.server.model,
                prompt=[7] * rng.randrange(1, 64),
                stream=True,
                max_tokens=32,
                temperature=0,
                extra_body={"ignore_eos": True},
            ) as stream:
                for _ in stream:
                    if time.monotonic() - started > stay_s:
                        break
                else:
                    self.count("leavers", 0, 1)
            time.sleep(rng.uniform(0, 2))

    def sharers(self) -> None:
        """Four at a time ask about one of a few long texts, so that prefixes come and go."""
        rng, client = random.Random(2), self.client()

        def ask(number: int) -> None:
            prompt = PREFIXES[number % len(PREFIXES)] + [number] * (number % 60 + 1)
            answer = client.completions.create(
                model=self.server.model,
                prompt=prompt,
                max_tokens=number % 40 + 1,
                temperature=0,
                extra_body={"ignore_eos": True},
            )
            short = answer.usage.completion_tokens != number % 40 + 1
            self.count("sharers", 1, 1, f"{number}: {answer.usage}" if short else "")

        with ThreadPoolExecutor(4) as pool:
            while self.is_continuous and self.going_on():
                list(pool.map(ask, rng.sample(range(900), 4)))
                time.sleep(rng.uniform(0, 3))

    def misfits(self) -> None:
        client = self.client()
        prompt = [7] * (320 if self.is_continuous else 257)
        while self.going_on():
            try:
                client.completions.create(model=self.server.model, prompt=prompt, max_tokens=1)
                self.count("misfits", problem="a prompt that fits no bucket was answered")
            except openai.BadRequestError:
                self.count("misfits")
            time.sleep(1)

    def watch_memory(self) -> None:
        process = psutil.Process(self.server.process.pid)
        started = time.monotonic()
        while self.going_on():
            everyone = [process, *process.children(recursive=True)]
            mb = sum(one.memory_info().rss for one in everyone) / 1e6
            self.memory.append(((time.monotonic() - started) / 60, mb))
            time.sleep(SAMPLE_S)

    def fixed_answers(self) -> dict[str, list[int]]:
        """Tokens of the fixed prompts, each by its bucket, one at a time."""
        answers = {}
        for bucket, (prompt, tokens) in FIXED.items():
            answer = self.client().completions.create(
                model=self.server.model,
                prompt=prompt,
                max_tokens=tokens,
                temperature=0,
                extra_body={"ignore_eos": True, "return_token_ids": True},
            )
            self.count("fixed", 1, 1)
            answers[bucket] = answer.choices[0].token_ids
        return answers

    # --- the run

    def run(self) -> dict:
        self.server.wait_until_ready()
        answers = [self.fixed_answers()]
        self.end = time.monotonic() + self.seconds
        clients = (
            self.vllm_rounds,
            self.guidellm_rounds,
            self.leavers,
            self.sharers,
            self.misfits,
            self.watch_memory,
        )
        with ThreadPoolExecutor(len(clients)) as pool:
            running = [pool.submit(client) for client in clients]
            time.sleep(max(0.0, (self.end - time.monotonic()) / 2))
            answers.append(self.fixed_answers())
            for one in running:
                one.result()
        self._wait_until_idle()
        answers.append(self.fixed_answers())
        return self._report(answers)

    def _wait_until_idle(self) -> None:
        for _ in range(600):
            now = self.server.metrics()
            if not now["vllm:num_requests_running"] + now["vllm:num_requests_waiting"]:
                return
            time.sleep(0.2)
        self.problems.append("requests are left when all clients have gone")

    def _report(self, answers: list[dict]) -> dict:
        now = self.server.metrics()
        ended = sum(
            now.get(f"vllm:request_success_total|{reason}", 0) for reason in ("stop", "length")
        )
        slope = _slope(self.memory)
        # Somebody may leave at the very moment of the last token: ended here, not answered there.
        left = self.sent["leavers"] - self.answered["leavers"]
        unanswered = ended - sum(self.answered.values())
        checks = {
            "every answer reached its client once": 0 <= unanswered - self.unreported <= left,
            **(self._of_blocks(now) if self.is_continuous else self._of_batches(now)),
            "nobody but those who left got less": not self.problems,
            "every misfit was refused": now["spyre:rejected_requests_total|prompt_too_long"]
            == self.sent["misfits"],
            "answers are the same at start, middle and end": answers[0] == answers[1] == answers[2],
            "memory is flat": slope < self.most_mb_a_minute,
            "the log has no error": "ERROR" not in self.server.output(),
        }
        return {
            "ok": all(checks.values()),
            "checks": checks,
            "sent": dict(self.sent),
            "answered": dict(self.answered),
            "ended_in_server": ended,
            "unreported_by_guidellm": self.unreported,
            **self.figures,
            "memory_mb": self.memory[-1][1],
            "memory_slope_mb_a_minute": slope,
            "problems": self.problems[:5],
        }

    def _of_batches(self, now: dict[str, float]) -> dict[str, bool]:
        """What must hold of static batches; notes their figures."""
        passes = read_passes(self.pass_log)
        rows = sum(now[f"spyre:batch_rows_total|{bucket}"] for bucket in FIXED)
        logged = int(passes.loc[passes["kind"] == "prefill", "prompt_tokens"].map(len).sum())
        self.figures = {
            "batches": int(passes["batch"].nunique()),
            "rows": logged,
            "longest_pass_s": float(passes["seconds"].max()),
        }
        return {"every row of the metrics is in the pass log": rows == logged}

    def _of_blocks(self, now: dict[str, float]) -> dict[str, bool]:
        """What must hold of continuous batching; notes its figures."""
        steps = read_step_rows(self.pass_log)
        passes = _sum(now, "spyre:passes_total")
        hits = now["vllm:prefix_cache_hits_total"]
        self.figures = {
            "passes": len(steps),
            "rows": _sum(now, "spyre:decode_rows_total"),
            "longest_pass_s": max(step.seconds for step in steps),
            "prefix_hit_tokens": hits,
            "preemptions": now["spyre:preemptions_total"],
            "least_free_blocks": min(step.free_blocks for step in steps),
        }
        return {
            "every pass of the metrics is in the pass log": passes == len(steps),
            "no block is held": now["spyre:blocks_used"] == 0,
            "prefixes were hit": hits > 0,
        }


def _sum(now: dict[str, float], name: str) -> float:
    return sum(value for key, value in now.items() if key.split("|")[0] == name)


def _slope(memory: list[tuple[float, float]]) -> float:
    """MB a minute, by least squares, once the server has settled."""
    minutes, mb = np.array(memory).T
    settled = minutes >= SETTLED * minutes[-1]
    return float(np.polyfit(minutes[settled], mb[settled], 1)[0])


def _of_guidellm(path: Path) -> tuple[int, int]:
    """Requests that were answered, and those that it still held when it ended: now and then it
    stops before its last answer. The server must have ended them all the same."""
    if not path.exists():
        return 0, 0
    (benchmark,) = json.loads(path.read_text())["benchmarks"]
    answered = benchmark["metrics"]["request_totals"]["successful"]
    return answered, benchmark["scheduler_state"]["processing_requests"]


def main(
    minutes: Annotated[float, typer.Option(help="of traffic")] = 20,
    guidellm: Annotated[Path | None, typer.Option(help="its executable, the second client")] = None,
    directory: Annotated[Path | None, typer.Option(help="takes the logs")] = None,
    most_mb_a_minute: Annotated[float, typer.Option(help="that memory may grow by")] = 1.0,
    batching: Annotated[str, typer.Option(help="static or continuous")] = "static",
) -> None:
    directory = directory or Path(tempfile.mkdtemp(prefix="spyre-soak-"))
    directory.mkdir(parents=True, exist_ok=True)
    soak = Soak(directory, minutes * 60, guidellm, most_mb_a_minute, batching)
    try:
        report = soak.run()
    finally:
        soak.server.clean_up()
    print(f"logs: {directory}", file=sys.stderr)
    print(json.dumps(report))
    raise typer.Exit(0 if report["ok"] else 1)


if __name__ == "__main__":
    typer.run(main)
