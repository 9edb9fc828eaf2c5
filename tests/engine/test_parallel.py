"""Ranks as processes of their own: the same tokens as one, and a rank that is missing is named."""

import json
import tarfile
import threading

import pytest

from tests.engine.ranks import greedy, run_ranks

pytestmark = pytest.mark.engine

BUCKETS = "2,64,6 1,128,4"
PROMPTS = [[20 + i for i in range(50)], [11, 12, 13]]


@pytest.mark.parametrize(
    ("name", "tp"), [("tiny_llama", 2), ("tiny_granite", 4), ("tiny_grouped", 4), ("smollm2", 3)]
)
def test_the_ranks_say_what_one_says_and_hold_their_share(name, tp, engine, request):
    model = request.getfixturevalue(name)
    alone = engine(model, BUCKETS, compile_backend="eager")
    for rank in run_ranks(model, tp, BUCKETS, PROMPTS, compile_backend="eager"):
        assert rank.tokens == greedy(alone, PROMPTS)
        assert rank.weight_bytes == rank.predicted_bytes < alone.weight_bytes


@pytest.fixture
def tiny_grouped(tmp_path):
    """Fewer KV heads than ranks: some ranks have the same one."""
    from tests.tiny_models import tiny_model

    return tiny_model(tmp_path / "grouped", "llama", heads=12, kv_heads=2)


@pytest.mark.slow
def test_each_rank_finds_its_own_artefact_again(tiny_granite, tmp_path):
    cold, warm = (
        run_ranks(tiny_granite, 2, BUCKETS, PROMPTS, artefact_directory=tmp_path) for _ in range(2)
    )
    assert [rank.was_warm for rank in cold] == [[False, False]] * 2
    assert [rank.was_warm for rank in warm] == [[True, True]] * 2
    assert [rank.tokens for rank in warm] == [rank.tokens for rank in cold]
    identities = []
    for path in tmp_path.rglob("*.tar"):
        with tarfile.open(path) as tar:
            identities.append(json.load(tar.extractfile("manifest.json"))["identity"])
    assert sorted((one["rank"], one["tp"]) for one in identities) == [(0, 2), (1, 2)]


def test_ranks_that_never_join_are_named(tmp_path):
    from spyre_bench.engine.parallel import Rank, join

    with pytest.raises(TimeoutError, match=r"rank 1 of 4 waited 1 s for rank 0, 2, 3"):
        join(Rank(1, 4), tmp_path / "meet", 1)


def test_an_engine_of_several_ranks_wants_them_joined_first(tiny_llama):
    from spyre_bench.engine.causal_lm import SpyreCausalLM
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.parallel import Rank
    from spyre_bench.shapes import BucketSet

    config = EngineConfig(
        model_directory=tiny_llama, buckets=BucketSet.parse("1,64,2"), rank=Rank(1, 2)
    )
    with pytest.raises(RuntimeError, match="rank 1 of 2 has no process group: call `join` first"):
        SpyreCausalLM(config)


@pytest.mark.parametrize(
    ("rank", "tp", "words"),
    [(0, 9, "size 9: use 1 to 8"), (0, 0, "size 0: use 1 to 8"), (2, 2, "ranks go from 0 to 1")],
)
def test_a_rank_that_cannot_be_is_refused(rank, tp, words):
    from spyre_bench.engine.parallel import Rank

    with pytest.raises(ValueError, match=words):
        Rank(rank, tp)


@pytest.mark.parametrize(("ranks", "at_once", "most"), [(5, 2, 2), (4, 1, 1), (3, 3, 3)])
def test_ranks_take_turns(ranks, at_once, most, monkeypatch):
    """Threads in place of processes, a threading barrier in place of gloo's."""
    import torch.distributed as dist

    from spyre_bench.engine.parallel import Rank, in_turns

    barrier = threading.Barrier(ranks, timeout=10)
    monkeypatch.setattr(dist, "barrier", barrier.wait)
    inside, seen, order, lock = set(), [], [], threading.Lock()
    together = threading.Barrier(most, timeout=10) if ranks % most == 0 else None

    def enter(rank: int) -> None:
        with in_turns(Rank(rank, ranks), at_once):
            with lock:
                inside.add(rank)
                seen.append(len(inside))
                order.append(rank // at_once)
            if together:
                together.wait()
            with lock:
                inside.remove(rank)

    threads = [threading.Thread(target=enter, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(seen) == ranks
    assert max(seen) <= most
    assert order == sorted(order)
