"""What `engine/carried.py` claims: every value that it carries gives the tokens of transformers, by
buckets and in blocks, every other one a sentence. `make test-models` runs all of it; here all of it
eager by buckets, and one case of each architecture compiled, on two ranks and in blocks."""

from pathlib import Path

import pytest

from tests.engine.matrix import (
    BUCKETS,
    CARRIED,
    LONGEST,
    REFUSED,
    SHAPES,
    Case,
    expected,
    prompts,
    served,
    served_in_blocks,
    write,
)

pytestmark = pytest.mark.engine

SHORT = [case for case in CARRIED if case.name == "as it is"]
LONG = [case for case in CARRIED if case not in SHORT]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Writes each case's directory once; with it transformers' answers."""
    made: dict[str, tuple[Path, list[list[int]]]] = {}

    def make(case: Case) -> tuple[Path, list[list[int]]]:
        if str(case) not in made:
            directory = write(case, tmp_path_factory.mktemp("case"))
            made[str(case)] = directory, expected(directory)
        return made[str(case)]

    return make


def engine(directory: Path, backend: str, **setting):
    from spyre_bench.engine.causal_lm import SpyreCausalLM
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.warmup import warm_up
    from spyre_bench.shapes import BucketSet

    model = SpyreCausalLM(
        EngineConfig(
            model_directory=directory,
            buckets=BucketSet.parse(BUCKETS),
            compile_backend=backend,
            **setting,
        )
    )
    warm_up(model, progress=False)
    return model


def paged_engine(directory: Path, backend: str):
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.paged_causal_lm import PagedCausalLM
    from spyre_bench.engine.warmup import warm_up

    model = PagedCausalLM(
        EngineConfig(model_directory=directory, shapes=SHAPES, compile_backend=backend)
    )
    warm_up(model, progress=False)
    return model


@pytest.mark.parametrize("case", CARRIED, ids=str)
def test_what_is_carried_gives_the_tokens_of_transformers(case, checkpoint):
    directory, tokens = checkpoint(case)
    assert len({token for row in tokens for token in row}) > 30  # worth comparing
    assert served(engine(directory, "eager"), prompts()) == tokens


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_so_does_compiled_code(case, checkpoint):
    directory, tokens = checkpoint(case)
    assert served(engine(directory, "inductor"), prompts()) == tokens


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_so_do_two_ranks(case, checkpoint):
    ranks_agree(*checkpoint(case), "eager")


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_so_does_continuous_batching(case, checkpoint):
    directory, tokens = checkpoint(case)
    assert served_in_blocks(paged_engine(directory, "eager"), prompts()) == tokens


@pytest.mark.models
@pytest.mark.parametrize("case", LONG, ids=str)
def test_every_other_case_in_blocks(case, checkpoint):
    test_so_does_continuous_batching(case, checkpoint)


@pytest.mark.models
@pytest.mark.parametrize("case", SHORT, ids=str)
def test_each_architecture_in_blocks_compiled(case, checkpoint):
    directory, tokens = checkpoint(case)
    assert served_in_blocks(paged_engine(directory, "inductor"), prompts()) == tokens


@pytest.mark.models
@pytest.mark.parametrize("case", LONG, ids=str)
def test_every_other_case_compiled(case, checkpoint):
    test_so_does_compiled_code(case, checkpoint)


@pytest.mark.models
@pytest.mark.parametrize("case", LONG, ids=str)
def test_every_other_case_on_two_ranks(case, checkpoint):
    ranks_agree(*checkpoint(case), "eager")


@pytest.mark.models
@pytest.mark.parametrize("case", SHORT, ids=str)
def test_each_architecture_compiled_on_two_ranks(case, checkpoint):
    ranks_agree(*checkpoint(case), "inductor")


@pytest.mark.parametrize(("case", "sentence"), REFUSED, ids=str)
def test_what_is_not_carried_is_refused_with_its_field_and_value(case, sentence, tmp_path):
    from spyre_bench.engine.carried import read_config, require_carried

    write(case, tmp_path)
    with pytest.raises(ValueError, match=sentence) as refusal:
        require_carried(read_config(tmp_path), LONGEST)
    assert "\n" not in str(refusal.value)


def ranks_agree(directory: Path, tokens: list[list[int]], backend: str) -> None:
    from tests.engine.ranks import run_ranks

    ranks = run_ranks(directory, 2, BUCKETS, prompts(), served, compile_backend=backend)
    assert [rank.tokens for rank in ranks] == [tokens, tokens]
