"""`--tensor-parallel-size N` is enough: the answers of one rank and of Hugging Face, every bucket,
eager and compiled, offline and served."""

import json
import re
import sys
import tarfile
from pathlib import Path

import openai
import pytest

from tests.plugin.servers import GATHERED, PROMPTS, SPYRE, Server

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "offline_script.py"


def prompts_for(name: str) -> list[str]:
    """The last one fits the longer bucket only; a tiny model has a token a character."""
    return PROMPTS if name == "smollm2" else [prompt[:120] for prompt in PROMPTS]


def answers(run) -> list[list[int]]:
    (line,) = [line for line in run.output().splitlines() if line.startswith("[[")]
    return json.loads(line)


def greedy(directory: Path, prompts: list[str], new_tokens: int) -> list[list[int]]:
    """What Hugging Face transformers says, one prompt at a time, end of sequence ignored by
    neither side."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    said = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(
                inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=new_tokens,
                do_sample=False,
            )
        said.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    return said


def require_every_bucket(log: Path, buckets: list[list[int]]) -> None:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    used = {tuple(line["bucket"]) for line in lines if line["kind"] == "prefill"}
    assert used == {tuple(bucket) for bucket in buckets}


@pytest.mark.parametrize(
    ("name", "tp", "backend"),
    [
        # every number of ranks with both backends, here or in one of the tests below
        pytest.param("tiny_llama", 2, "eager", marks=pytest.mark.ranks),
        ("tiny_granite", 4, "eager"),
        pytest.param("tiny_llama", 4, "inductor", marks=pytest.mark.ranks),
        pytest.param("smollm2", 3, "inductor", marks=pytest.mark.ranks),
    ],
)
def test_offline_the_ranks_say_what_hugging_face_says(start, request, tmp_path, name, tp, backend):
    model, log = request.getfixturevalue(name), tmp_path / "passes.jsonl"
    prompts = prompts_for(name)
    spyre = GATHERED | {
        "compile_backend": backend,
        "pass_log": str(log),
        "step_timeout_s": 600,
        "artefact_directory": str(tmp_path / "artefacts"),
    }
    arguments = json.dumps([str(model), spyre, prompts, 16, {"tensor_parallel_size": tp}])
    run = start(sys.executable, str(SCRIPT), arguments)
    assert run.process.wait(600) == 0, run.output()
    assert answers(run) == greedy(model, prompts, 16)
    require_every_bucket(log, SPYRE["buckets"])
    shares = re.findall(rf"Rank (\d) of {tp} holds [\d,]+ bytes", run.output())
    assert sorted(shares) == [str(rank) for rank in range(tp)]
    assert f"{tp} ranks share " in run.output()
    assert "Traceback" not in run.output()
    run.require_nothing_left()


@pytest.mark.parametrize(
    ("name", "tp", "backend"),
    [
        ("tiny_granite", 2, "eager"),
        pytest.param("tiny_granite", 2, "inductor", marks=pytest.mark.ranks),
        pytest.param("smollm2", 3, "eager", marks=pytest.mark.ranks),
    ],
)
def test_served_the_ranks_say_what_hugging_face_says(request, tmp_path, name, tp, backend):
    model, log = request.getfixturevalue(name), tmp_path / "passes.jsonl"
    prompts = prompts_for(name)
    spyre = GATHERED | {
        "compile_backend": backend,
        "pass_log": str(log),
        "step_timeout_s": 600,
        "artefact_directory": str(tmp_path / "artefacts"),
    }
    server = Server(model, spyre, tmp_path / "log", "--tensor-parallel-size", str(tp))
    try:
        server.wait_until_ready()
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        answer = client.completions.create(
            model=server.model,
            prompt=prompts,
            max_tokens=16,
            temperature=0,
            extra_body={"return_token_ids": True},
        )
        assert [choice.token_ids for choice in answer.choices] == greedy(model, prompts, 16)
        require_every_bucket(log, SPYRE["buckets"])
        sampled = [
            client.completions.create(
                model=server.model, prompt=prompts[2], max_tokens=16, temperature=1, seed=7, n=4
            )
            for _ in range(2)
        ]
        first, again = ([choice.text for choice in one.choices] for one in sampled)
        assert first == again, "a seed is worth the same however often it is asked"
        server.ctrl_c()
        server.process.wait(30)
        server.require_nothing_left()
    finally:
        server.clean_up()


def rank_of(artefact: Path) -> int:
    with tarfile.open(artefact) as tar:
        return json.loads(tar.extractfile("manifest.json").read())["identity"]["rank"]


@pytest.mark.ranks
def test_a_warm_start_compiles_nothing_on_any_rank_and_a_missing_artefact_is_named(
    start, tiny_llama, tmp_path
):
    artefacts = tmp_path / "artefacts"
    spyre = {
        "buckets": [[2, 64, 8]],
        "artefact_directory": str(artefacts),
        "step_timeout_s": 600,
    }

    def begin(**more):
        arguments = [str(tiny_llama), spyre | more, PROMPTS[:2], 8, {"tensor_parallel_size": 2}]
        run = start(sys.executable, str(SCRIPT), json.dumps(arguments))
        return run, run.process.wait(300)

    cold, code = begin()
    assert code == 0, cold.output()
    assert answers(cold) == greedy(tiny_llama, PROMPTS[:2], 8)
    # refuses to start unless every rank finds all of its code
    warm, code = begin(require_precompiled=True)
    assert code == 0, warm.output()
    assert answers(warm) == answers(cold)
    (of_rank_1,) = (path for path in artefacts.glob("*.tar") if rank_of(path) == 1)
    of_rank_1.unlink()
    refused, code = begin(require_precompiled=True)
    assert code > 0
    assert re.search(
        r"the engine stops: rank 1 of 2 \(process \d+\) failed: ValueError: require_precompiled",
        refused.output(),
    ), refused.output()
    refused.require_nothing_left()


def test_more_threads_than_cores_are_warned_of(tiny_llama, monkeypatch, caplog):
    from types import SimpleNamespace

    from spyre_bench.engine.parallel import Rank
    from spyre_bench.plugin import worker

    monkeypatch.setattr(worker, "available_cpu_count", lambda: 4)
    monkeypatch.setattr(worker.torch, "get_num_threads", lambda: 2)

    def share(tp: int, is_driver: bool = True) -> list[str]:
        caplog.clear()
        rank = SimpleNamespace(spyre_rank=Rank(0, tp), is_driver_worker=is_driver)
        with caplog.at_level("INFO", logger=worker.logger.name):
            worker.SpyreWorker._share_cores(rank)
        return caplog.messages

    assert share(1) == share(2, is_driver=False) == []
    assert share(2) == ["2 ranks share 4 cores, threads each: 2."]
    _, warning = share(4)
    assert "wait for each other. Set OMP_NUM_THREADS=1, or use fewer ranks" in warning


CONTINUOUS = {
    "batching": "continuous",
    "prefill_shapes": "64,192 128,256",
    "decode_shapes": "2,256 4,192",
    "blocks": 7,  # so few that somebody is preempted
    "rules": {"admission": "preempt"},
}


@pytest.mark.parametrize(
    ("name", "tp", "backend"),
    [
        ("tiny_granite", 2, "eager"),
        pytest.param("tiny_llama", 3, "eager", marks=pytest.mark.ranks),
        pytest.param("tiny_llama", 2, "inductor", marks=pytest.mark.ranks),
        pytest.param("smollm2", 3, "inductor", marks=pytest.mark.ranks),
    ],
)
def test_ranks_that_share_a_cache_in_blocks_say_what_hugging_face_says(
    start, request, tmp_path, name, tp, backend
):
    """Chunks, joins, hits and preemption; the later prompts begin as the first does."""
    model, log = request.getfixturevalue(name), tmp_path / "passes.jsonl"
    first = (PROMPTS[-1] * 4)[: 600 if name == "smollm2" else 170]
    prompts = [first, first + " blue", PROMPTS[2], first[:140], PROMPTS[1]]
    spyre = CONTINUOUS | {
        "compile_backend": backend,
        "pass_log": str(log),
        "step_timeout_s": 600,
        "artefact_directory": str(tmp_path / "artefacts"),
    }
    arguments = json.dumps([str(model), spyre, prompts, 40, {"tensor_parallel_size": tp}])
    run = start(sys.executable, str(SCRIPT), arguments)
    assert run.process.wait(600) == 0, run.output()
    assert answers(run) == greedy(model, prompts, 40)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    warmed, passes = (
        {line["shape"] for line in lines if "shape" in line and ("requests" in line) == ran}
        for ran in (False, True)
    )
    chosen = {"prefill 64,192"}  # by what warmup's passes took; nobody else can do without
    assert warmed - chosen <= passes <= warmed
    stored: dict[str, int] = {}  # tokens of each request after its last chunk
    hits, preempted = 0, 0
    for line in lines:
        if line["kind"] == "chunk":
            (request_id,), (end,), (tokens,) = (
                line[field] for field in ("requests", "context_tokens", "tokens")
            )
            hits += end > tokens and request_id not in stored
            preempted += end - tokens < stored.get(request_id, 0)
            stored[request_id] = end
    assert hits > 0
    assert preempted > 0
    run.require_nothing_left()
