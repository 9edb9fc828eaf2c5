"""Requests that join and leave a running batch, in chunks and blocks, say what Hugging Face says,
whatever else the cache holds; and nothing compiles after warmup."""

from __future__ import annotations

import random

import pytest

from spyre_bench.policy.continuous import Rules
from spyre_bench.shape_set import ShapeSet

pytestmark = pytest.mark.engine

PREFILL, DECODE = "64,256 128,320", "2,320 4,128 8,64"
LENGTHS = (1, 63, 64, 65, 127, 128, 200)
COMPILED = [
    ("tiny_llama", "eager", "layer"),
    ("tiny_granite", "inductor", "layer"),
    pytest.param(("tiny_llama", "inductor", "model"), marks=pytest.mark.models),
]


@pytest.fixture(scope="module")
def paged():
    """paged(directory, blocks=..., **setting): a warmed engine, its cache full of large numbers."""
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.paged_causal_lm import PagedCausalLM
    from spyre_bench.engine.warmup import warm_up

    made = {}

    def make(directory, blocks=60, **setting):
        key = (directory, blocks, *sorted(setting.items()))
        if key not in made:
            shapes = ShapeSet.parse(PREFILL, DECODE, blocks)
            model = PagedCausalLM(EngineConfig(model_directory=directory, shapes=shapes, **setting))
            warm_up(model, progress=False)
            made[key] = model
        for number, (keys, values) in enumerate(made[key]._pools):
            keys.fill_(1000.0 + number)
            values.fill_(-1000.0)
        return made[key]

    return make


@pytest.fixture(scope="module")
def greedy():
    """greedy(directory, prompt, count): what transformers says, alone and unpadded."""
    import torch
    from transformers import AutoModelForCausalLM

    models, said = {}, {}

    def tokens(directory, prompt, count):
        if directory not in models:
            models[directory] = AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32
            ).eval()
        key = (directory, tuple(prompt), count)
        if key not in said:
            said[key] = (
                models[directory]
                .generate(
                    torch.tensor([prompt]),
                    attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                    do_sample=False,
                    min_new_tokens=count,
                    max_new_tokens=count,
                    eos_token_id=None,
                )[0, len(prompt) :]
                .tolist()
            )
        return said[key]

    return tokens


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(f"{length} {seed}").choices(range(3, 90), k=length)


def mixed(count: int, seed: int = 0) -> list[tuple[int, list[int], int]]:
    """Requests (arrival step, prompt, outputs) of every length, a few steps apart."""
    draw = random.Random(seed)
    requests = []
    for place in range(count):
        prompt = prompt_of(LENGTHS[place % len(LENGTHS)], place)
        requests.append((draw.randrange(3 * count), prompt, draw.randint(1, 12)))
    return requests


@pytest.fixture(params=COMPILED, ids=["eager-layer", "inductor-layer", "inductor-model"])
def compiled(request):
    name, backend, scope = request.param
    directory = request.getfixturevalue(name)
    return directory, {"compile_backend": backend, "compile_scope": scope}


def test_requests_that_join_and_leave_say_what_hugging_face_says(compiled, paged, greedy):
    from tests.engine.paged_host import PagedHost, outputs_of

    directory, setting = compiled
    requests = mixed(21)
    host = PagedHost(paged(directory, **setting))
    said = outputs_of(host, requests)
    assert said == [greedy(directory, prompt, count) for _, prompt, count in requests]


@pytest.mark.parametrize("compile_scope", ["layer", "model"])
def test_so_do_the_cards_own_operations_in_fp16(
    compile_scope, fake_sendnn, paged, greedy, tiny_llama
):
    from tests.engine.paged_host import PagedHost, outputs_of

    setting = {"compile_backend": "sendnn", "compile_scope": compile_scope, "dtype": "float16"}
    engine = paged(tiny_llama, **setting)
    shapes = len(engine.shapes)
    warmup = [word for word in fake_sendnn if word not in ("run", "static")]
    assert warmup == ["enter", "compile", "exit"] * shapes
    fake_sendnn.clear()
    requests = mixed(7)
    said = outputs_of(PagedHost(engine), requests)
    assert said == [greedy(tiny_llama, prompt, count) for _, prompt, count in requests]
    assert set(fake_sendnn) == {"run"}


@pytest.mark.parametrize(
    ("tp", "compile_backend", "compile_scope"),
    [
        (2, "eager", "model"),
        (3, "eager", "layer"),
        pytest.param(2, "inductor", "layer", marks=pytest.mark.ranks),
        pytest.param(3, "inductor", "model", marks=pytest.mark.ranks),
    ],
)
def test_so_do_ranks(tp, compile_backend, compile_scope, greedy, tiny_llama):
    from tests.engine import paged_host
    from tests.engine.ranks import run_ranks

    requests = mixed(14)
    setting = {"compile_backend": compile_backend, "compile_scope": compile_scope}
    shapes = ShapeSet.parse(PREFILL, DECODE, 60)
    ranks = run_ranks(tiny_llama, tp, shapes, requests, paged_host.greedy, **setting)
    expected = [greedy(tiny_llama, prompt, count) for _, prompt, count in requests]
    assert [rank.tokens for rank in ranks] == [expected] * tp
    assert all(rank.weight_bytes == rank.predicted_bytes for rank in ranks)


@pytest.mark.parametrize(
    "rules",
    [
        Rules(admission="preempt"),
        Rules(max_batch_context_tokens=512, decode_between=2),
        Rules(over_limit="hold", max_batch_context_tokens=512),
        Rules(layout="rectangular", chunk_tokens=128),
        Rules(chunk_tokens=64, order="shortest_prefill"),
    ],
    ids=["preempted", "paused", "held", "rectangular", "short chunks"],
)
def test_no_rule_changes_a_token(rules, paged, greedy, tiny_llama):
    from tests.engine.paged_host import PagedHost, outputs_of

    blocks = 10 if rules.admission == "preempt" else 60
    host = PagedHost(paged(tiny_llama, blocks, compile_backend="eager"), rules)
    requests = [(0, prompt_of(length, 7), 40) for length in LENGTHS]
    said = outputs_of(host, requests)
    assert said == [greedy(tiny_llama, prompt, 40) for _, prompt, _ in requests]


@pytest.mark.parametrize("layout", ["ragged", "rectangular"])
@pytest.mark.parametrize("shared", [0, 64, 128, 192])
def test_a_prefix_hit_changes_no_token(shared, layout, paged, greedy, tiny_llama):
    from tests.engine.paged_host import PagedHost, outputs_of

    rules = Rules(layout=layout, chunk_tokens=128)
    host = PagedHost(paged(tiny_llama, compile_backend="eager"), rules)
    first = prompt_of(193)
    requests = [(0, first, 5), (30, first[:shared] + prompt_of(70, 1), 5), (60, first[:192], 5)]
    said = outputs_of(host, requests)
    assert said == [greedy(tiny_llama, prompt, 5) for _, prompt, _ in requests]


@pytest.mark.parametrize("boundary", [64, 128, 256, 320])
@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_prompts_and_contexts_around_every_compiled_boundary(
    boundary, beside, paged, greedy, tiny_llama
):
    from tests.engine.paged_host import PagedHost, outputs_of

    length = boundary + beside
    host = PagedHost(paged(tiny_llama, compile_backend="eager"))
    requests = []
    if length + 2 <= 320:
        requests.append((0, prompt_of(length), 2))  # the prompt's end
    requests.append((0, prompt_of(max(1, length - 20)), min(length, 320) - max(1, length - 20)))
    said = outputs_of(host, requests)
    assert said == [greedy(tiny_llama, prompt, count) for _, prompt, count in requests]


@pytest.mark.parametrize("compile_scope", ["layer", "model"])
def test_a_shape_is_one_graph_and_serving_adds_none(compile_scope, tiny_llama, capfd):
    from spyre_bench.engine.compile import unique_graphs
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.paged_causal_lm import PagedCausalLM
    from spyre_bench.engine.warmup import warm_up
    from tests.engine.paged_host import PagedHost, outputs_of

    shapes = ShapeSet.parse(PREFILL, DECODE, 60)
    model = PagedCausalLM(
        EngineConfig(
            model_directory=tiny_llama,
            shapes=shapes,
            compile_backend="eager",
            compile_scope=compile_scope,
        )
    )
    before = unique_graphs()
    rows = warm_up(model, progress=True)
    bar = capfd.readouterr().err
    assert all(shape.name in bar for shape in shapes)
    assert [row.graphs for row in rows] == [1] * len(shapes)
    outputs_of(PagedHost(model), mixed(9))
    assert unique_graphs() - before == len(shapes)


def test_the_cards_own_operation_gives_the_same_attention(tiny_llama):
    """FMS's paged ops over the same blocks, slot-major, for ragged rows and for a chunk."""
    import torch
    from fms.utils.spyre import paged  # noqa: F401  registers the ops

    from spyre_bench.engine import paged_attention

    torch.manual_seed(0)
    heads, kv_heads, dim, blocks = 6, 2, 16, 9
    keys, values = torch.randn(2, blocks, kv_heads, 64, dim).unbind()
    slot_major = (keys.transpose(1, 2).contiguous(), values.transpose(1, 2).contiguous())
    table = torch.tensor([[3, 5, 0], [7, 2, 8], [4, 0, 0]])
    lengths = torch.tensor([100, 192, 1])
    query = torch.randn(3, 1, heads, dim)
    seen = torch.arange(192) < lengths[:, None]
    mask = torch.zeros(3, 1, 1, 192).masked_fill(~seen[:, None, None], float("-inf"))
    flat = query.view(3, 1, heads, dim)
    scale = dim**-0.5
    card = torch.ops.spyre.paged_attn_compute(
        query, *slot_major, scale, lengths, torch.zeros(3, dtype=torch.long), table
    )
    ours = paged_attention._decode(
        flat, keys, values, heads, kv_heads, 0.0, None, mask=mask, table=table
    )
    torch.testing.assert_close(ours, card, atol=1e-6, rtol=1e-5)
    fused = paged_attention._fused(
        query.view(3, kv_heads, heads // kv_heads, dim) * scale, keys, values, mask, table
    )
    torch.testing.assert_close(fused.view(3, 1, heads, dim), card, atol=1e-6, rtol=1e-5)
    chunk = torch.randn(1, 64, heads, dim)
    causal = torch.arange(192) <= torch.arange(100, 164)[:, None]
    mask = torch.zeros(1, 1, 64, 192).masked_fill(~causal, float("-inf"))
    card = torch.ops.spyre.paged_attn_compute(
        chunk, *slot_major, scale, torch.tensor([164]), torch.tensor([0]), table[1:2]
    )
    ours = paged_attention._prefill(
        chunk, keys, values, heads, kv_heads, 0.0, None, mask=mask, table=table[1:2]
    )
    torch.testing.assert_close(ours, card, atol=1e-6, rtol=1e-5)


def test_what_does_not_fit_is_an_error_that_names_it(paged, tiny_llama):
    from spyre_bench.engine.paged_causal_lm import Chunk, DecodeRow
    from spyre_bench.shape_set import DecodeShape

    model = paged(tiny_llama, compile_backend="eager")
    small = model.shapes.prefill[0]
    with pytest.raises(ValueError, match="65 tokens behind 0 does not fit prefill shape 64,256"):
        model.prefill(small, Chunk([5] * 65, 0, [1, 2]))
    with pytest.raises(ValueError, match="row 0 has 1 blocks for 128 tokens: it needs 2"):
        model.prefill(small, Chunk([5] * 64, 64, [1]))
    with pytest.raises(ValueError, match="names block 60, and the cache has blocks 0 to 59"):
        model.prefill(small, Chunk([5] * 64, 0, [60]))
    wide = model.shapes.decode[-1]
    with pytest.raises(ValueError, match="1 rows with up to 65 tokens do not fit decode sh"):
        model.decode(wide, [DecodeRow(5, 64, [1, 2])])
    with pytest.raises(RuntimeError, match="shape 3,64 was not warmed up"):
        model.decode(DecodeShape(3, 64), [DecodeRow(5, 0, [1])])


def test_a_rank_has_room_for_the_blocks_that_its_bytes_leave(tiny_llama):
    from spyre_bench.checkpoints.weight_files import WeightFiles
    from spyre_bench.engine.carried import read_config
    from spyre_bench.engine.memory import blocks_that_fit, check_pool, pool_bytes, sizes_of

    sizes = sizes_of(read_config(tiny_llama), WeightFiles(tiny_llama))
    for tp in (1, 2):
        shapes = ShapeSet.parse(PREFILL, DECODE, 33)
        needed = check_pool(sizes, shapes, "float32", 2**40, tp)
        block, _ = pool_bytes(sizes, shapes, "float32", tp)
        assert block == 64 * 2 * sizes.layers * sizes.card_kv_heads(tp) * sizes.head_dim * 4
        assert blocks_that_fit(sizes, shapes, "float32", needed, tp) == 33
        assert blocks_that_fit(sizes, shapes, "float32", needed - 1, tp) == 32
        assert blocks_that_fit(sizes, shapes, "float32", 1, tp) == 0


def test_too_many_blocks_are_refused_with_how_many_would_fit(tiny_llama):
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.engine.paged_causal_lm import PagedCausalLM

    config = EngineConfig(
        model_directory=tiny_llama,
        shapes=ShapeSet.parse(PREFILL, DECODE, 10**6),
        compile_backend="eager",
        memory_bytes=50_000_000,
    )
    with pytest.raises(
        ValueError, match=r"(\d+) blocks would fit: set num_gpu_blocks_override"
    ) as told:
        PagedCausalLM(config)
    fit = int(str(told.value).split(" blocks would fit")[0].split()[-1])
    PagedCausalLM(
        EngineConfig(
            model_directory=tiny_llama,
            shapes=ShapeSet.parse(PREFILL, DECODE, fit),
            compile_backend="eager",
            memory_bytes=50_000_000,
        )
    )
