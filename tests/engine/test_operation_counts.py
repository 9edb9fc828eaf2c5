"""The closed form of a model's operations and parameters, held against torch's own counts.

The FMS models run on the meta device, whole and in the engine's own passes: no weight is there.
"""

import pytest

from spyre_bench.model_sizes import ModelSizes, preset
from spyre_bench.shapes import Bucket

pytestmark = pytest.mark.engine

# preset -> FMS's architecture and a variant of it, all of whose sizes are replaced
MODELS = {
    "granite-3.3-8b": ("granite", "8b"),
    "granite-4-8b-dense": ("granite", "8b"),
    "llama-3.1-8b": ("llama", "3-8b"),
    "smollm2-135m": ("llama", "3-8b"),
    "mistral-small-24b": ("mistral", "7b"),
    "qwen3-8b": ("qwen3", "4b"),
}
BUCKETS = [Bucket(1, 512, 64), Bucket(3, 128, 32)]


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """An FMS model on the meta device with the sizes of a preset."""
    return request.param, _build(request.param)


def _build(name: str, **split):
    import torch
    from fms.models import get_model

    shape = preset(name)
    sizes = {
        "src_vocab_size": shape.vocab_size,
        "emb_dim": shape.hidden_size,
        "nheads": shape.heads,
        "kvheads": shape.kv_heads,
        "nlayers": shape.layers,
        "hidden_grow_factor": shape.intermediate_size / shape.hidden_size,
        "multiple_of": 64,  # the quotient above need not come back whole
        "tie_heads": shape.tied_head,
        "max_expected_seq_len": 1024,
    }
    architecture, variant = MODELS[name]
    if architecture != "llama":  # whose heads always share the hidden size out
        sizes["head_dim"] = shape.head_dim
    model = get_model(
        architecture, variant, device_type="meta", data_type=torch.float16, **split, **sizes
    )
    model.eval().requires_grad_(False)
    # FMS keeps no rotary table on meta, and looks it up there all the same
    rotary = model.base_model.layers[0].attn.position_encoder
    alpha = rotary.compute_freqs_cis(torch.device("meta"), 1024)
    rotary.cached_freqs[None] = {alpha: torch.zeros(1024, shape.head_dim // 2, 2, 2, device="meta")}
    return model


def count(model, shape, bucket: Bucket, *, decode: bool) -> int:
    """Operations of one of the engine's passes, as torch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from spyre_bench.engine.fms import _run_model
    from spyre_bench.engine.static_attention import SPYRE_STATIC

    rows, slots = bucket.batch_size, bucket.context_length
    queries, seen = (1, slots) if decode else (bucket.prompt_length,) * 2
    with torch.device("meta"), torch.no_grad():
        caches = [
            tuple(
                torch.zeros(rows, shape.kv_heads, slots, shape.head_dim, dtype=torch.float16)
                for _ in "kv"
            )
            for _ in range(shape.layers)
        ]
        tokens = torch.zeros(rows, queries, dtype=torch.long)
        mask = torch.zeros(rows, 1, queries, seen, dtype=torch.float16)
        slot = torch.zeros(1, dtype=torch.long) if decode else None
        with FlopCounterMode(display=False) as counter:
            attention = {"attn_name": SPYRE_STATIC, "mask": mask, "slot": slot}
            logits = _run_model(model, tokens, tokens, caches, attention)
    assert logits.shape == (rows, shape.vocab_size)
    return counter.get_total_flops()


def operations(sizes: ModelSizes, rows: int, queries: int, slots: int) -> int:
    """Of a pass, by the parts that the card's model prices: products with weights, attention, and
    the head for the last token of each row."""
    linears = (*sizes.attention_linears(), *sizes.mlp_linears())
    layer = 2 * rows * queries * sum(linear.weights for linear in linears)
    layer += 2 * sizes.attention_operations(rows, queries, slots)
    return sizes.layers * layer + 2 * rows * sizes.head_linear().weights


def test_the_closed_form_counts_what_torch_counts(model):
    name, built = model
    shape = preset(name)
    for bucket in BUCKETS:
        prefill, decode = (count(built, shape, bucket, decode=it) for it in (False, True))
        rows, prompt = bucket.batch_size, bucket.prompt_length
        assert operations(shape, rows, prompt, prompt) == prefill
        assert operations(shape, rows, 1, bucket.context_length) == decode


def test_the_closed_form_counts_every_parameter(model):
    name, built = model
    assert preset(name).parameters == sum(p.numel() for p in built.parameters())


@pytest.fixture
def one_of_many():
    """Rank 0 of so many cards that are not there: FMS splits its weights, nothing is sent."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def started(cards: int):
        dist.init_process_group("fake", rank=0, world_size=cards, store=FakeStore())
        return dist.group.WORLD

    yield started
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("name", "cards"),
    [
        ("granite-3.3-8b", 4),
        ("granite-3.3-8b", 16),  # more than its 8 KV heads
        ("llama-3.1-8b", 2),
        ("smollm2-135m", 3),
        ("qwen3-8b", 8),
    ],
)
def test_a_card_holds_what_fms_gives_to_one_rank(one_of_many, name, cards):
    group = one_of_many(cards)
    split = _build(name, distributed_strategy="tp", group=group, fused_weights=False)
    held = sum(p.numel() for p in split.parameters())
    assert preset(name).weight_bytes("fp16", cards) == 2 * held
    assert split.base_model.embedding.num_embeddings == preset(name).vocab_size
