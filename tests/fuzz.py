"""Damaged files, options and parameters through every command that only calculates: `make fuzz`.

What a user brought may be refused with a sentence that we wrote, and with nothing else. Each input
follows from the seed and its number alone, so that one can be run again by `--only`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_notebook

import spyre_bench
from spyre_bench import errors
from spyre_bench.cli import main as cli
from spyre_bench.cost.table import write_cost_table
from spyre_bench.runs import execute as headless
from spyre_bench.studies import sweep
from tests.cost.test_cost import machine
from tests.runs.test_records import KEPT

OURS = str(Path(spyre_bench.__file__).parent)
LONGEST_S = 30  # of one input
MOST_BYTES = 12 * 2**30  # of address space: a wish for more is a MemoryError and not an outage
NASTY = [
    "",
    " ",
    "-1",
    "0",
    "1",
    "2.7",
    "nan",
    "inf",
    "-inf",
    "1e300",
    "-1e300",
    "1e-320",
    "1e-7",
    "1" * 400,
    "9" * 5000,
    "null",
    "None",
    "true",
    "True",
    "0x10",
    "1_000",
    "1e3",
    "٣",
    "½",
    str(2**31),
    str(2**63),
    str(2**64),
    "1700000000",
    "1700000000000000000",
    "2024-01-01",
    "2024-13-45",
    "[",
    "]",
    "{",
    "}",
    "[]",
    "{}",
    "[[]]",
    "'",
    '"',
    ",",
    ";",
    ":",
    "\t",
    "\n",
    "\r",
    "\x00",
    "\\",
    "/",
    ".",
    "..",
    "~",
    "-",
    "--",
    "=",
    "a=b",
    "[/bold]",
    "[red]x",
    "$x$",
    "$\\frac$",
    "%s",
    "{0}",
    "{a}",
    "é",
    "\ud83d",
    "<script>",
    "*",
    "&a",
    "!!python/none",
    "@",
    "x" * 140_000,
    "[" * 5_000,
    '{"a":' * 5_000,
    "4,64,32",
    "card:",
    "card:x,tp=0",
]
VALUES: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2.7,
    -0.0,
    float("nan"),
    float("inf"),
    -float("inf"),
    1e300,
    1e-320,
    10**400,
    2**31,
    2**63,
    "",
    "x",
    "nan",
    "[/bold]",
    "$x$",
    "\x00",
    [],
    {},
    [[]],
    [None],
    {"": None},
    ["a", 1],
    {"a": {"b": [1]}},
    "x" * 140_000,
    1700000000.5,
    "1",
    -5,
]


class Found(NamedTuple):
    """An exception that reached a user, or a hang, by the input that it came from."""

    number: int
    what: str
    words: list[str]
    trace: str


# --- damage ---------------------------------------------------------------------------------------


def damaged_text(chance: random.Random, text: str) -> str:
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        text = chance.choice((_elsewhere, _elsewhere, _line, _line, _throughout))(chance, text)
    return text


def _elsewhere(chance: random.Random, text: str) -> str:
    """Cut off, more or less of it at any place."""
    at = chance.randrange(len(text) + 1)
    rest = (chance.choice(NASTY) + text[at:], text[at + chance.randrange(1, 9) :], "")
    return text[:at] + chance.choice(rest)


def _line(chance: random.Random, text: str) -> str:
    """A cell of a line replaced, or the line there twice or not at all."""
    lines = text.splitlines(keepends=True) or [""]
    at = chance.randrange(len(lines))
    cells = lines[at].rstrip("\n").split(",")
    cells[chance.randrange(len(cells))] = chance.choice(NASTY)
    damaged = ",".join(cells) + "\n"
    lines[at] = chance.choice((damaged, damaged, damaged, lines[at] * 2, ""))
    return "".join(lines)


def _throughout(chance: random.Random, text: str) -> str:
    """Another separator, or other ends of lines."""
    if chance.random() < 0.5:
        return text.replace(",", chance.choice(";\t|"))
    return text.replace("\n", chance.choice(("\r\n", "\r", "\n\n", ",\n", " \n")))


def damaged_value(chance: random.Random, value: Any) -> Any:
    """With something else in one place of a tree of mappings and lists."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 2, 4))):
        if not isinstance(value, dict | list) or not value or chance.random() < 0.02:
            return copy.deepcopy(chance.choice(VALUES))
        inside = value
        while True:
            key = (
                chance.choice(list(inside))
                if isinstance(inside, dict)
                else (chance.randrange(len(inside)))
            )
            deeper = inside[key]
            if not isinstance(deeper, dict | list) or not deeper or chance.random() < 0.3:
                break
            inside = deeper
        if chance.random() < 0.25:
            del inside[key]
        elif isinstance(inside, dict) and chance.random() < 0.15:
            inside[chance.choice(NASTY)] = inside.pop(key)
        else:
            inside[key] = copy.deepcopy(chance.choice(VALUES))
    return value


def damaged_bytes(chance: random.Random, text: str, name: str) -> bytes:
    encoding = chance.choices(("utf-8", "utf-16", "utf-8-sig", "cp500"), (30, 1, 1, 1))[0]
    content = text.encode(encoding, errors="surrogatepass" if encoding == "utf-8" else "replace")
    if name.endswith(".gz"):
        content = gzip.compress(content)[: chance.choice((None, None, -5, 7))]
    return content


def damaged_json(chance: random.Random, value: Any) -> str:
    text = json.dumps(damaged_value(chance, value))
    return damaged_text(chance, text) if chance.random() < 0.3 else text


def damaged_yaml(chance: random.Random, value: Any) -> str:
    text = yaml.safe_dump(damaged_value(chance, value), allow_unicode=True)
    return damaged_text(chance, text) if chance.random() < 0.5 else text


# --- inputs ---------------------------------------------------------------------------------------

TRACE = [{"arrival_s": n, "prompt_tokens": 40 + n, "output_tokens": 3 + n} for n in range(12)]
HEADERS = (
    "arrival_s,prompt_tokens,output_tokens",
    "TIMESTAMP,ContextTokens,GeneratedTokens",
    "Timestamp,Request tokens,Response tokens",
    "timestamp,input_length,output_length",
    "arrived_at,num_prefill_tokens,num_decode_tokens",
    "arrival_timestamp,prompt_size,token_size",
    "timestamp,prompt_tokens,output_tokens",
    "created_at,prompt_tokens,output_tokens",
)
RESULT = {
    "request_throughput": 2.0,
    "output_throughput": 9.0,
    "duration": 4.0,
    "mean_ttft_ms": 5.0,
    "input_lens": [10, 20],
    "output_lens": [1, 3],
    "ttfts": [1.0, 2.0],
    "latencies": [1.0, 4.0],
    "itls": [[], [1.0, 1.0]],
    "spyre_fill": 0.5,
}
OUTCOME = {
    "notebook": "some",
    "error": None,
    "seconds": 1.0,
    "basis": {},
    "files": [],
    "traits": {"measures": False, "calculated": [], "chance": [], "ties": []},
}
TIE = {"choice": "results/fill", "objective": "results/over/skip", "gap": 0.1, "settles": []}
PARAMETERS = (
    'a: int = 2\nb: float = 1.5\nc: str = "x=y"\nd: bool = True\ne: int | None = None\n'
    'from typing import Literal\nf: Literal["p", "q"] = "p"\ng = [1]\noutput_directory: str = ""'
)
SERVE = ("--bucket", "8,64,32", "--bucket", "2,1024,512", "--cost", "{cost}")
SIMULATE_OPTIONS = (
    "--policy",
    "--seed",
    "--requests",
    "--arrivals",
    "--max-tokens",
    "--cost",
    "--length-scale",
    "--rate-scale",
    "--max-wait-s",
    "--gather-s",
    "--max-age-s",
    "--replicas",
    "--router",
    "--client-overhead-ms",
    "--goodput",
    "--bucket",
    "--workload",
    "--out",
)
BUCKETS_OPTIONS = (
    "-k",
    "--warmup-budget",
    "--memory-gib",
    "--batch-size",
    "--policy",
    "--objective",
    "--goodput",
    "--seed",
    "--requests",
    "--arrivals",
    "--max-tokens",
    "--length-scale",
    "--rate-scale",
    "--cost",
)
TYPICAL = [
    "poisson:{}",
    "gamma:{},1",
    "onoff:{},1,1",
    "constant:{}",
    "fixed:{}",
    "multiple:{}",
    "quantile:{}",
    "ttft:{}",
    "{},64,32",
    "4,{},32",
    "4,64,{}",
    "card:granite-3.3-8b,tp={}",
    "card:granite-3.3-8b,all_reduce_us={}",
]


class Folder:
    """Good files of every kind, to be damaged one at a time."""

    def __init__(self, path: Path):
        self.path = path
        corners = [f"{b},{p},{n}" for b in (1, 8) for p in (64, 2048) for n in (2, 1024)]
        write_cost_table(path / "cost.csv", machine(*corners))
        lines = [f"{n},{40 + n},{3 + n}" for n in range(12)]
        (path / "trace.csv").write_text("\n".join([HEADERS[0], *lines]) + "\n")
        (path / "result.json").write_text(json.dumps(RESULT))
        for name in ("base", "new"):
            place = path / name / "some"
            (place / "tables").mkdir(parents=True)
            (place / "outcome.json").write_text(json.dumps(OUTCOME))
            (place / "results.json").write_text(json.dumps(KEPT))
            (place / "tables" / "t.csv").write_text("a,b_s\n1,2.5\n2,3.5\n")

    def words(self, *words: str) -> list[str]:
        return [word.replace("{cost}", str(self.path / "cost.csv")) for word in words]

    def put(self, name: str, content: bytes | str) -> str:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        path.write_bytes(raw)
        return str(path)


def trace_file(chance: random.Random, folder: Folder) -> list[str]:
    if chance.random() < 0.6:
        name = chance.choice(("t.csv", "t.csv", "t.txt", "t.csv.gz"))
        day = "2024-01-01 00:00:{:02}"
        header = chance.choice(HEADERS)
        first = day if header.startswith("TIME") else "{}"
        lines = [f"{first.format(n)},{40 + n},{3 + n}" for n in range(12)]
        text = damaged_text(chance, "\n".join([header, *lines]) + "\n")
    else:
        name = chance.choice(("t.jsonl", "t.json", "t.jsonl.gz"))
        names = chance.choice(HEADERS).split(",")
        rows = [dict(zip(names, row.values(), strict=True)) for row in TRACE]
        row = chance.randrange(len(rows))
        texts = [json.dumps(row) for row in rows]
        texts[row] = damaged_json(chance, rows[row])
        text = "\n".join(texts) if chance.random() < 0.9 else damaged_json(chance, rows)
    path = folder.put(name, damaged_bytes(chance, text, name))
    return ["simulate", "--workload", path, *folder.words(*SERVE)]


def cost_file(chance: random.Random, folder: Folder) -> list[str]:
    text = (folder.path / "cost.csv").read_text()
    path = folder.put("c.csv", damaged_bytes(chance, damaged_text(chance, text), "c.csv"))
    trace = str(folder.path / "trace.csv")
    if chance.random() < 0.2:
        return ["buckets", "--workload", trace, "--cost", path, "-k", "2"]
    return ["simulate", "--workload", trace, *SERVE[:4], "--cost", path, "--extrapolate"][
        : chance.choice((9, 10))
    ]


def options(chance: random.Random, folder: Folder) -> list[str]:
    trace = str(folder.path / "trace.csv")
    if chance.random() < 0.25:
        words = ["buckets", "--workload", trace, "--cost", "{cost}", "-k", "2"]
        names = BUCKETS_OPTIONS
    else:
        words, names = ["simulate", "--workload", trace, *SERVE], SIMULATE_OPTIONS
    for _ in range(chance.choice((1, 1, 2))):
        value = chance.choice(NASTY)
        value = chance.choice(TYPICAL).replace("{}", value) if chance.random() < 0.3 else value
        words += [chance.choice(names), value]
    return folder.words(*words)


def grid_file(chance: random.Random, folder: Folder) -> list[str]:
    grid = {
        "workload": str(folder.path / "trace.csv"),
        "cost": str(folder.path / "cost.csv"),
        "buckets": ["8,64,32", "2,1024,512 8,64,32"],
        "policy": ["skip", "best_fit"],
        "requests": 5,
        "seed": 1,
        "rate_scale": [1.0, 2.0],
        "replicas": 1,
        "max_wait_s": 0.5,
        "arrivals": "poisson:1",
        "extrapolate": False,
    }
    out = folder.path / "out.csv"
    if chance.random() < 0.2:
        folder.put("out.csv", damaged_text(chance, ",".join(sweep.COLUMNS) + "\na,b\n"))
    else:
        out.unlink(missing_ok=True)
    path = folder.put("g.yaml", damaged_yaml(chance, grid))
    return ["sweep", path, "--out", str(out), "--jobs", chance.choice(("1", "1", "1", "0", "x"))]


def result_file(chance: random.Random, folder: Folder) -> list[str]:
    result = dict(RESULT)
    if chance.random() < 0.4:
        del result["latencies"]
    path = folder.put("r.json", damaged_bytes(chance, damaged_json(chance, result), "r.json"))
    files = [path, str(folder.path / "result.json")]
    chance.shuffle(files)
    return ["validate", *files, *chance.choice(((), ("--json",)))]


def run_folder(chance: random.Random, folder: Folder) -> list[str]:
    shutil.rmtree(folder.path / "run", ignore_errors=True)
    shutil.copytree(folder.path / "base", folder.path / "run")
    content = chance.choice(("outcome", "results", "table", "tolerances"))
    words = ["compare", str(folder.path / "base"), str(folder.path / "run")]
    if content == "outcome":
        outcome = OUTCOME | {"traits": OUTCOME["traits"] | {"ties": [TIE]}}
        folder.put("run/some/outcome.json", damaged_json(chance, outcome))
    elif content == "results":
        full = {
            **KEPT,
            "question": "?",
            "answer": "**Yes**",
            "captions": {"waste": "w"},
            "versions": {"python": "3"},
            "load": [1.0],
            "seconds": 3.0,
            "commit": "c",
        }
        folder.put("run/some/results.json", damaged_json(chance, full))
    elif content == "table":
        folder.put("run/some/tables/t.csv", damaged_text(chance, "a,b_s\n1,2.5\n2,3.5\n"))
    else:
        path = folder.put("t.yaml", damaged_yaml(chance, {"ratio": 0.2, "results/fill": 0.05}))
        return [*words, "--tolerances", path]
    if chance.random() < 0.3:
        return [
            *words,
            "--tolerance",
            chance.choice(("ratio={}", "{}=1", "{}")).replace("{}", chance.choice(NASTY)),
        ]
    if chance.random() < 0.4:
        return ["report", str(folder.path / "run"), "--base", str(folder.path / "base")]
    return [*words, *chance.choice(((), ("--json",)))]


def paired_sides(chance: random.Random, folder: Folder) -> list[str]:
    """Of `pairs`: two commands that print a damaged answer, or what is no side at all."""
    answer = damaged_json(chance, {"prefill_s": 0.5, "decode_s": 0.05, "of": "it"})
    path = folder.put("answer", damaged_bytes(chance, answer + "\n", "answer"))
    sides = [f"cat {path}", f"cat {path}", "true", str(folder.path), *NASTY[:2], "nowhere"]
    words = ["pairs", chance.choice(sides), chance.choice(sides), "-n", "1", "--starts", "1"]
    if chance.random() < 0.3:
        words += [chance.choice(("--least", "--bucket", "--out", "-n")), chance.choice(NASTY[:20])]
    return words


def parameters(chance: random.Random, folder: Folder) -> list[str]:
    """Of a notebook that is not executed: what is looked at before."""
    text = PARAMETERS if chance.random() < 0.7 else damaged_text(chance, PARAMETERS)
    cell = new_code_cell(text.encode("utf-8", "replace").decode())
    cell.metadata.tags = ["parameters"]
    document = new_notebook(cells=[cell])
    document.metadata = {
        "kernelspec": {"name": "python3", "display_name": "p"},
        "language_info": {"name": "python"},
        "spyre_bench": {"measures": False},
    }
    if chance.random() < 0.3:
        path = folder.put("n.ipynb", damaged_json(chance, json.loads(nbformat.writes(document))))
    else:
        path = folder.put("n.ipynb", nbformat.writes(document))
    words = ["run", path, "-o", str(folder.path / "reports")]
    if chance.random() < 0.4:
        section = {"n": {"a": 1, "c": "x", "e": None, "g": [1, {"h": 2}]}}
        words += ["-f", folder.put("p.yaml", damaged_yaml(chance, section))]
    if chance.random() < 0.7:
        words += ["-p", chance.choice(("a", "b", "c", "d", "e", "f", "g", *NASTY[:30]))]
        words += [chance.choice(NASTY)]
    if chance.random() < 0.15:
        words += [
            "--grid",
            chance.choice(("a={}", "{}=1,2", "{}")).replace("{}", chance.choice(NASTY)),
        ]
    return words


KINDS: dict[Callable[[random.Random, Folder], list[str]], int] = {
    trace_file: 25,
    cost_file: 15,
    options: 20,
    grid_file: 12,
    result_file: 12,
    run_folder: 12,
    paired_sides: 4,
    parameters: 15,
}


# --- the run --------------------------------------------------------------------------------------


def run(inputs: int, seed: int, only: int | None = None) -> Iterator[Found]:
    """What reached a user that we did not write, over so many inputs."""
    with tempfile.TemporaryDirectory() as place, _within_bounds(Path(place)) as caught:
        folder = Folder(Path(place))
        for number in range(inputs) if only is None else [only]:
            chance = random.Random(f"{seed}/{number}")
            (kind,) = chance.choices(list(KINDS), list(KINDS.values()))
            words = kind(chance, folder)
            caught.clear()
            said = _invoke(words, caught)
            for error in caught:
                if what := reached(error):
                    trace = "".join(traceback.format_exception(error))
                    yield Found(number, f"{kind.__name__}: {what}", words, trace)
            if "Traceback" in said:
                yield Found(number, f"{kind.__name__}: a traceback was printed", words, said)


def _invoke(words: list[str], caught: list[BaseException]) -> str:
    """Everything that the command printed; what it raised goes to `caught`."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        signal.alarm(LONGEST_S)
        try:
            cli.app(words)
        except SystemExit:
            pass
        except BaseException as error:
            caught.append(error)
        finally:
            signal.alarm(0)
    return said.getvalue()


def reached(error: BaseException) -> str:
    """What is wrong with an exception that is told to a user; empty where it is a sentence of ours,
    or the system's about a file."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.name}"
    if isinstance(error, OSError):
        return ""
    if not isinstance(error, errors.FOR_PEOPLE):
        return f"{type(error).__name__} in {place}"
    return "" if last.filename.startswith(OURS) else f"a sentence of {place}"


class Hang(BaseException):
    """An input took too long."""


@contextlib.contextmanager
def _within_bounds(folder: Path) -> Iterator[list[BaseException]]:
    """In a folder of its own, with bounds on time and memory; no notebook is executed; exceptions
    that become a row or an outcome are caught too."""
    caught: list[BaseException] = []
    here, sentence, execute = os.getcwd(), errors.sentence, headless._execute
    bounds = resource.getrlimit(resource.RLIMIT_AS)

    def noted(error: BaseException) -> str:
        caught.append(error)
        return sentence(error)

    def hang(*_: object) -> None:
        raise Hang

    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, bounds[1]))
    earlier = signal.signal(signal.SIGALRM, hang)
    headless.sentence = sweep.sentence = noted
    headless._execute = lambda *_: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield caught
    finally:
        headless.sentence = sweep.sentence = sentence
        headless._execute = execute
        signal.signal(signal.SIGALRM, earlier)
        resource.setrlimit(resource.RLIMIT_AS, bounds)
        os.chdir(here)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--only", type=int, help="one input by its number, with its traceback")
    chosen = parser.parse_args()
    found = list(run(chosen.inputs, chosen.seed, chosen.only))
    by_kind: dict[str, list[Found]] = {}
    for one in found:
        by_kind.setdefault(one.what, []).append(one)
    for what, some in sorted(by_kind.items(), key=lambda entry: -len(entry[1])):
        print(f"{len(some):4} {what}: inputs {', '.join(str(one.number) for one in some[:6])}")
    if chosen.only is not None:
        for one in found:
            print(one.words, one.trace, sep="\n")
    print(f"{chosen.inputs} inputs, seed {chosen.seed}: {len(found)} exceptions reached a user")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
