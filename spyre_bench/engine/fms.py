"""FMS's model code: a checkpoint as an FMS model that computes what transformers would.

Shapes: B rows, Q query tokens of a pass, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from fms.models import get_model
from fms.models.hf.config_utils import _FMS_MODEL_CONFIG_REGISTRY
from fms.modules.attention import MultiHeadAttention
from fms.modules.positions import RopeNoScalingImpl, RotaryEmbedding
from fms.utils.serialization import load_state_dict_into_model
from torch import Tensor, nn

from spyre_bench.checkpoints.weight_files import WeightFiles
from spyre_bench.engine.carried import read_config
from spyre_bench.engine.compile import COMPILE_BACKENDS
from spyre_bench.engine.linear import pack_linears
from spyre_bench.engine.memory import sizes_of
from spyre_bench.engine.model_code import LoadedModel
from spyre_bench.engine.parallel import Rank
from spyre_bench.engine.weights import finite_tensors, require_servable, skeleton
from spyre_bench.model_sizes import ModelSizes

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class FMSCode:
    """IBM's foundation-model-stack, which the card's software compiles first."""

    name = "fms"
    compile_backends = COMPILE_BACKENDS

    def versions(self) -> dict[str, str]:
        return {"ibm-fms": version("ibm-fms")}

    def sizes(self, directory: Path, context_length: int) -> ModelSizes:
        return sizes_of(require_servable(directory, context_length), WeightFiles(directory))

    def load(
        self,
        directory: Path,
        sizes: ModelSizes,
        dtype: torch.dtype,
        context_length: int,
        rank: Rank,
        returns_caches: bool,
    ) -> FMSModel:
        config, files = read_config(directory), WeightFiles(directory)
        module = load(config, sizes, files, dtype, context_length, rank.tp, rank.rank)
        return FMSModel(module, returns_caches)


class FMSModel(LoadedModel):
    layers_are_alike = True  # one block's config for all, which `carried` lets no field change

    def __init__(self, module: nn.Module, returns_caches: bool):
        self.module = module
        self.returns_caches = returns_caches
        self.whole_pass = _run_model_and_caches if returns_caches else _run_model
        self.layer_pass = _run_layer_and_cache if returns_caches else _run_layer

    def inputs(self, tokens, positions, caches, attention):
        return tokens, positions, caches, attention

    def route_layers(self, current):
        layers = self.module.base_model.layers
        for index, layer in enumerate(layers):
            layers[index] = _SwitchedLayer(layer, current, self.returns_caches)

    def pack_linears(self, rows):
        pack_linears(self.module, rows)


class _SwitchedLayer(nn.Module):
    """A decoder layer that runs in whichever compiled pass the engine is in (scope `layer`)."""

    def __init__(self, layer: nn.Module, current: Callable, returns_caches: bool):
        super().__init__()
        self.layer = layer
        self.current = current
        self.returns_caches = returns_caches

    def forward(self, x, *, position_ids, past_key_value_state, use_cache, **attention):
        out = self.current()(self.layer, x, position_ids, past_key_value_state, attention)
        return out if self.returns_caches else (out, past_key_value_state)


def _run_layer(layer, x, positions, cache, attention):
    """One decoder layer over its (keys, values) cache: hidden states in, hidden states out."""
    return _run_layer_and_cache(layer, x, positions, cache, attention)[0]


def _run_layer_and_cache(layer, x, positions, cache, attention):
    return layer(
        x=x, position_ids=positions, past_key_value_state=cache, use_cache=True, **attention
    )


def _run_model(model, tokens, positions, caches, attention):
    """The whole model: tokens [B, Q] in, logits [B, V] of the last column out."""
    return _run_model_and_caches(model, tokens, positions, caches, attention)[0]


def _run_model_and_caches(model, tokens, positions, caches, attention):
    logits, caches = model(
        tokens,
        position_ids=positions,
        past_key_value_states=caches,
        use_cache=True,
        last_n_tokens=1,
        **attention,
    )
    return logits[:, -1], caches


def load(
    config: PretrainedConfig,
    sizes: ModelSizes,
    files: WeightFiles,
    dtype: torch.dtype,
    context_length: int,
    tp: int,
    rank: int,
) -> nn.Module:
    """The model, ready to compute `context_length` tokens, as one of `tp` ranks.

    `config` and `files` were accepted by `require_servable`. Raises ValueError for weights that are
    not finite, or a tied head of its own.
    """
    tensors = finite_tensors(files, config, dtype)
    strategy = "tp" if tp > 1 else None
    arguments = _arguments(config, sizes, context_length)
    architecture = arguments["architecture"]
    # without memory: what is not filled below would show
    model = get_model(
        **arguments, device_type="meta", data_type=dtype, distributed_strategy=strategy
    )
    load_state_dict_into_model(
        model=model,
        state_dict=tensors,
        architecture=architecture,
        source="hf",
        dtype=dtype,
        distributed_strategy=strategy,
        rank=rank,
    )
    model.post_init()  # ties the head
    _encode_positions(model, config, context_length)
    empty = [name for name, value in model.named_parameters() if value.is_meta]
    assert not empty, f"FMS left {empty} unfilled"
    return model.eval().requires_grad_(False)


def _arguments(config: PretrainedConfig, sizes: ModelSizes, context_length: int) -> dict[str, Any]:
    """FMS's own reading of the config, mended where it drops or guesses a field.

    It reads no activation for Llama, and takes the width of a dense Granite 4's MLP from a field
    that its layers do not use. It rounds an MLP's width up to a multiple, of a factor of the hidden
    size that may fall short of the whole number by rounding. An embedding's pad row matters in
    training only, and may lie outside the vocabulary.
    """
    arguments = _FMS_MODEL_CONFIG_REGISTRY.hf_config_to_fms_config_params(config, None)
    return arguments | {
        "activation_fn": config.hidden_act,
        "attn_bias": sizes.attention_bias,
        "mlp_bias": sizes.mlp_bias,
        "hidden_grow_factor": (sizes.intermediate_size + 0.5) / sizes.hidden_size,
        "multiple_of": 1,
        "max_expected_seq_len": context_length,
        "pad_id": -1,
        "p_dropout": 0.0,
    }


def _encode_positions(model: nn.Module, config: PretrainedConfig, context_length: int) -> None:
    """Gives every layer the rotations of transformers' own class, or none where it has none."""
    if getattr(config, "position_embedding_type", "rope") != "rope":
        for module in model.modules():
            if isinstance(module, MultiHeadAttention):
                module.position_encoder = None
        return
    rotary: RotaryEmbedding = model.base_model.rot_emb  # one for all layers
    rotary.rope_type = "regular"
    rotary.rope_scaling = RopeNoScalingImpl(rotary.dim)
    rotary.cached_freqs = {None: {1: rotations(config, context_length)}}
    rotary.max_seq_len_cached = {None: context_length}


def rotations(config: PretrainedConfig, context_length: int) -> Tensor:
    """Rotation matrices [context_length, D/2, 2, 2] of each position, in FMS's form.

    Frequencies and scale come from transformers' rotary embedding of this model, whatever its
    rope type.
    """
    reference = type(skeleton(config).model.rotary_emb)(config)
    angles = torch.outer(torch.arange(context_length).float(), reference.inv_freq.float())
    cos, sin = angles.cos(), angles.sin()
    pairs = torch.stack([cos, -sin, sin, cos], -1) * reference.attention_scaling
    return pairs.view(*angles.shape, 2, 2)
