"""vLLM's own model code gives the tokens of transformers, or refuses in a sentence. `make
test-models` runs every checkpoint of `vllm_models.py`; here what the backend promises first, eager
in blocks, and one of each other way."""

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pytest

from spyre_bench.shapes import Bucket
from tests.engine.matrix import BUCKETS, SHAPES, batches, prompts, served, served_in_blocks
from tests.plugin.conftest import platform_as_before
from tests.plugin.vllm_models import (
    CASES,
    PASSED_OVER,
    REFUSED,
    UNEQUAL,
    VALUES,
    Case,
    expected,
    write,
)

pytestmark = pytest.mark.engine

PROMISED = (
    *("LlamaForCausalLM", "GraniteForCausalLM", "GraniteMoeHybridForCausalLM"),
    *("MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM"),
    *("Gemma2ForCausalLM", "GPTNeoXForCausalLM", "GPT2LMHeadModel", "OPTForCausalLM"),
    *("GraniteMoeForCausalLM", "MixtralForCausalLM"),
)
FIRST = [case for case in CASES if case.architecture in PROMISED]
OTHERS = [case for case in CASES if case.architecture not in PROMISED]
COMPILED = [case for case in FIRST if case.architecture == "Gemma2ForCausalLM"]
IN_BUCKETS = [(case, scope) for case in COMPILED for scope in ("layer", "model")]
IN_BUCKETS += [(case, "layer") for case in FIRST if case.architecture == "GraniteForCausalLM"]
RANKS = ("LlamaForCausalLM", "GPT2LMHeadModel", "Gemma2ForCausalLM", "GraniteMoeForCausalLM")


@pytest.fixture(autouse=True)
def _the_engine_of_other_tests_stays_the_last_one():
    with platform_as_before():
        yield


@dataclass(frozen=True)
class Checkpoint:
    """A case on disk, with what transformers says after each prompt."""

    directory: Path
    tokens: list[list[int]]
    logprobs: list[list[float]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Iterator[Callable[[Case], Checkpoint]]:
    """Writes each case once; transformers answers in a process of its own, since vLLM changes its
    classes where it runs their code."""
    made: dict[str, Checkpoint] = {}
    with ProcessPoolExecutor(1, get_context("forkserver")) as elsewhere:

        def make(case: Case) -> Checkpoint:
            if str(case) not in made:
                directory = tmp_path_factory.mktemp("case")
                answers = elsewhere.submit(written, case, directory).result()
                made[str(case)] = Checkpoint(directory, *map(list, zip(*answers, strict=True)))
            return made[str(case)]

        yield make


def written(case: Case, directory: Path) -> list[tuple[list[int], list[float]]]:
    write(case, directory)
    return expected(directory)


def engine(directory: Path, compiled, **setting):
    """A warmed engine of buckets, or of shapes."""
    from spyre_bench.engine.causal_lm import SpyreCausalLM
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.paged_causal_lm import PagedCausalLM
    from spyre_bench.engine.warmup import warm_up
    from spyre_bench.plugin.vllm_model import VLLMCode
    from spyre_bench.shapes import BucketSet

    kind = "buckets" if isinstance(compiled, str) else "shapes"
    compiled = BucketSet.parse(compiled) if kind == "buckets" else compiled
    config = EngineConfig(
        model_directory=directory,
        model_code=VLLMCode.of(directory, compiled),
        **{kind: compiled},
        **setting,
    )
    model = (SpyreCausalLM if kind == "buckets" else PagedCausalLM)(config)
    model.warmup = warm_up(model, progress=False)
    return model


def in_blocks(directory: Path, **setting) -> list[list[int]]:
    return served_in_blocks(engine(directory, SHAPES, **setting), prompts())


def require_equal_in_buckets(made: Checkpoint, **setting) -> None:
    """Tokens, and the log probability of the first after each prompt."""
    model = engine(made.directory, BUCKETS, **setting)
    assert served(model, prompts()) == made.tokens
    for text, members in batches():
        logits = model.prefill(Bucket.parse(text), [prompts()[member] for member in members])
        likeliest = logits.log_softmax(-1).max(-1).values.tolist()
        assert likeliest == pytest.approx([made.logprobs[m][0] for m in members], abs=1e-3)


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_each_architecture_gives_the_tokens_of_transformers(case, checkpoint):
    made = checkpoint(case)
    assert in_blocks(made.directory, compile_backend="eager") == made.tokens


@pytest.mark.parametrize(("case", "scope"), IN_BUCKETS, ids=str)
def test_so_do_buckets_and_either_scope_with_log_probabilities(case, scope, checkpoint):
    require_equal_in_buckets(checkpoint(case), compile_backend="eager", compile_scope=scope)


@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_so_does_compiled_code_of_one_graph_for_layers_with_and_without_windows(case, checkpoint):
    made = checkpoint(case)
    model = engine(made.directory, SHAPES, compile_backend="inductor")
    assert served_in_blocks(model, prompts()) == made.tokens
    assert {row.graphs for row in model.warmup} == {1}


def test_so_does_a_checkpoint_in_several_files(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    made = checkpoint(FIRST[0])
    split = shutil.copytree(made.directory, tmp_path / "split")
    tensors = load_file(split / "model.safetensors")
    (split / "model.safetensors").unlink()
    places = {name: f"part-{number % 3}.safetensors" for number, name in enumerate(tensors)}
    for place in set(places.values()):
        held = {name: tensor for name, tensor in tensors.items() if places[name] == place}
        save_file(held, split / place, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (split / "model.safetensors.index.json").write_text(json.dumps(index))
    assert in_blocks(split, compile_backend="eager") == made.tokens


def test_so_do_two_ranks(checkpoint):
    case = next(case for case in FIRST if case.architecture == "GraniteForCausalLM")
    ranks_agree(checkpoint(case), "eager")


@pytest.mark.models
@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_every_other_architecture(case, checkpoint):
    test_each_architecture_gives_the_tokens_of_transformers(case, checkpoint)


@pytest.mark.models
@pytest.mark.parametrize("case", VALUES, ids=str)
def test_every_value(case, checkpoint):
    test_each_architecture_gives_the_tokens_of_transformers(case, checkpoint)


@pytest.mark.models
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_architecture_in_buckets(case, checkpoint):
    require_equal_in_buckets(checkpoint(case), compile_backend="eager")


@pytest.mark.models
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_architecture_compiled(case, checkpoint):
    made = checkpoint(case)
    assert in_blocks(made.directory, compile_backend="inductor") == made.tokens


@pytest.mark.ranks
@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("case", [case for case in CASES if case.architecture in RANKS], ids=str)
def test_several_architectures_on_two_ranks(case, backend, checkpoint):
    ranks_agree(checkpoint(case), backend)


@pytest.mark.models
@pytest.mark.parametrize(("case", "reason"), UNEQUAL, ids=str)
def test_what_vllm_computes_otherwise_is_refused(case, reason, tmp_path):
    from spyre_bench.plugin.vllm_model import VLLMCode

    write(case, tmp_path)
    with pytest.raises(ValueError, match=reason):
        VLLMCode.of(tmp_path, SHAPES)


@pytest.mark.models
@pytest.mark.parametrize(("case", "reason"), PASSED_OVER[1:], ids=str)
def test_every_checkpoint_that_vllms_model_does_not_hold(case, reason, tmp_path):
    write(case, tmp_path)
    with pytest.raises(ValueError, match=f"(?s){reason}"):
        engine(tmp_path, SHAPES, compile_backend="eager")


@pytest.mark.parametrize(("case", "reason"), PASSED_OVER[:1], ids=str)
def test_a_tensor_that_vllm_passes_over_is_named(case, reason, tmp_path):
    test_every_checkpoint_that_vllms_model_does_not_hold(case, reason, tmp_path)


@pytest.mark.models
@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=str)
def test_what_our_passes_do_not_compute_is_refused_by_name(case, reason, tmp_path):
    write(case, tmp_path)
    kinds = (ValueError, AssertionError)  # vLLM's own, of windows in some layers
    with pytest.raises(kinds, match=f"(?i){reason}"):
        engine(tmp_path, SHAPES, compile_backend="eager")


def test_every_architecture_that_is_said_to_be_held_is_in_the_table():
    from spyre_bench.plugin.vllm_sizes import HELD

    assert set(HELD) == {case.architecture for case in CASES}


def test_the_page_of_models_is_written_from_the_code():
    from spyre_bench.plugin.vllm_sizes import page

    written = Path(__file__).parents[2] / "docs" / "VLLM_MODELS.md"
    assert written.read_text() == page(), "python -m spyre_bench.plugin.vllm_sizes"


def test_a_model_that_fms_would_compute_otherwise_is_sent_to_vllms_code(checkpoint, tmp_path):
    from vllm.engine.arg_utils import EngineArgs

    directory = checkpoint(COMPILED[0]).directory
    with pytest.raises(ValueError, match='"model_code": "vllm"'):
        EngineArgs(
            str(directory), additional_config={"spyre": {"buckets": BUCKETS}}
        ).create_engine_config()


def test_scores_under_a_soft_cap_and_the_mask_of_a_window_are_in_the_memory_that_is_checked(
    tmp_path,
):
    from vllm.engine.arg_utils import EngineArgs

    from spyre_bench.engine.memory import pass_bytes
    from spyre_bench.plugin.vllm_sizes import sizes_of

    def needed(name: str, **values) -> tuple[int, int]:
        """Bytes beside the weights, and heads."""
        directory = write(Case("Gemma2ForCausalLM", name, values), tmp_path / name)
        spyre = {"buckets": BUCKETS, "model_code": "vllm"}
        config = EngineArgs(str(directory), additional_config={"spyre": spyre})
        sizes = sizes_of(config.create_engine_config(), directory, 512)
        return pass_bytes(sizes, Bucket(2, 128, 4), "float32"), sizes.heads

    a_head = 2 * 128 * 128 * 4
    capped, heads = needed("capped", attn_logit_softcapping=4.0)
    plain, _ = needed("plain", attn_logit_softcapping=None)
    without_window, _ = needed("wide", attn_logit_softcapping=None, sliding_window=None)
    assert capped - plain == 3 * heads * a_head
    assert plain - without_window == a_head


def test_weights_that_are_not_finite_are_named(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    write(Case("LlamaForCausalLM"), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are .*layers\.1\.mlp\.down_proj"):
        engine(tmp_path, SHAPES, compile_backend="eager")


def test_it_does_not_run_on_the_card_yet(tiny_llama, fake_torch_sendnn):
    with pytest.raises(ValueError, match="model_code 'vllm' does not run on 'sendnn'"):
        engine(tiny_llama, SHAPES, compile_backend="sendnn", dtype="float16")


@pytest.fixture
def fake_torch_sendnn(monkeypatch):
    import sys
    import types

    monkeypatch.setitem(sys.modules, "torch_sendnn", types.ModuleType("torch_sendnn"))


@pytest.mark.parametrize("batching", ["static", "continuous"])
def test_an_engine_of_vllm_says_the_same_by_either_code(batching, tiny_llama, tmp_path):
    from vllm import SamplingParams

    from tests.plugin.conftest import SHAPES as OF_VLLM
    from tests.plugin.conftest import make_llm

    asked = OF_VLLM if batching == "continuous" else {"buckets": [[2, 64, 16]]}
    answers = []
    for code in ("fms", "vllm"):
        llm = make_llm(tiny_llama, batching=batching, model_code=code, **asked)
        params = SamplingParams(max_tokens=12, temperature=0, logprobs=2, ignore_eos=True)
        answers.append(llm.generate(["Once upon", "a time"], params, use_tqdm=False))
    ids = [[answer.outputs[0].token_ids for answer in some] for some in answers]
    assert ids[0] == ids[1]
    for one, other in zip(*answers, strict=True):
        for left, right in zip(one.outputs[0].logprobs, other.outputs[0].logprobs, strict=True):
            token = next(iter(left))
            assert left[token].logprob == pytest.approx(right[token].logprob, abs=1e-3)


def ranks_agree(made: Checkpoint, backend: str) -> None:
    from spyre_bench.plugin.vllm_model import VLLMCode
    from spyre_bench.shapes import BucketSet
    from tests.engine.ranks import run_ranks

    code = VLLMCode.of(made.directory, BucketSet.parse(BUCKETS), tp=2)
    ranks = run_ranks(
        made.directory, 2, BUCKETS, prompts(), served, compile_backend=backend, model_code=code
    )
    assert [rank.tokens for rank in ranks] == [made.tokens, made.tokens]


def test_the_embedded_models_config_is_one_of_them(smollm2):
    from spyre_bench.plugin.vllm_sizes import HELD

    assert json.loads((smollm2 / "config.json").read_text())["architectures"][0] in HELD
