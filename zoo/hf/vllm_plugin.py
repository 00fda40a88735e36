"""Register the models of zoo.hf with vLLM's transformers backend, through the entry point `vllm.general_plugins`."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoConfig, AutoModel
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from zoo.errors import ConfigError
from zoo.hf.attention_interface import shape_attention
from zoo.hf.config import ZooConfig
from zoo.hf.task_models import ZooForCausalLM, ZooModel


class ServedConfig(ZooConfig):
    """The config that vLLM reads: it also describes the layers' attention, whose keys and values vLLM caches. Raises
    ConfigError for a model that the backend cannot serve."""

    def __post_init__(self, **others: Any) -> None:
        super().__post_init__(**others)
        if self.model is None:  # vLLM and transformers make default configs to compare with
            return
        check_head(self)
        shapes = shape_attention(self.writer)
        self.num_key_value_heads, self.head_dim = shapes[0].n_kv_heads, shapes[0].head_dim
        self.attn_logit_softcapping = shapes[0].softcap
        self.sliding_window = next((shape.window for shape in shapes if shape.window), None)
        self.layer_types = ["sliding_attention" if shape.window else "full_attention" for shape in shapes]


class ServedModel(ZooModel):
    """The model without its head, as the backend builds it. Raises ConfigError for several ranks, because vLLM would
    divide heads or layers, which Zoo's modules do not support."""

    config_class = ServedConfig

    def __init__(self, config: ServedConfig) -> None:
        from vllm.distributed import get_pp_group, get_tp_group  # type: ignore[import-not-found]

        for name, group in (("tensor", get_tp_group()), ("pipeline", get_pp_group())):
            if group.world_size > 1:
                raise ConfigError(f"{name}_parallel_size: is {group.world_size}, and a model of ours is whole (1)")
        super().__init__(config)


def check_head(config: ZooConfig) -> None:
    """Raise ConfigError for a head that vLLM cannot compute. vLLM multiplies the last hidden states by a matrix, and
    scales or caps the logits; a bias must have vLLM's own name."""
    tower, head = config.writer, config.writer.head
    more = {
        "kind": head.kind != "lm",
        "bias": getattr(head, "bias", False),
        "offset": getattr(head, "offset", False),
        "spare_rows": getattr(head, "spare_rows", 0),
        "vocab_size": tower.output_vocab_size != tower.vocab_size,
        "out_width": tower.out_width is not None,
        "scale with softcap": config.logit_scale not in (None, 1.0) and config.final_logit_softcapping is not None,
    }
    if found := next((name for name, value in more.items() if value), None):
        raise ConfigError(f"head: {found} is more than vLLM's transformers backend computes (another head)")


def register() -> None:
    """Register the model with vLLM's backend, under the names that it expects for the model and for the weights of its
    head. vLLM calls this in each of its processes."""
    name = ZooForCausalLM.__name__
    setattr(transformers, name, ZooForCausalLM)
    AutoConfig.register("zoo", ServedConfig, exist_ok=True)
    AutoModel.register(ServedConfig, ServedModel, exist_ok=True)
    register_checkpoint_conversion_mapping(name, [WeightRenaming(r"^head\.out\.", "lm_head.")], overwrite=True)
