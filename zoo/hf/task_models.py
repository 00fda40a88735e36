# B rows, T tokens, S columns so far, K columns with logits, V vocabulary, C classes
"""Define a transformers model over a Spec for each task, named as transformers' Auto classes expect."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    Seq2SeqLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from zoo.checkpoint import store
from zoo.checkpoint.gguf import find
from zoo.checkpoint.hf.writing import read_special_ids
from zoo.errors import ConfigError
from zoo.grammar import to_dict
from zoo.hf.config import ZooConfig
from zoo.hf.embedded_input import read_input
from zoo.hf.generation_cache import ZooCache
from zoo.hf.modeling import ZooPreTrainedModel, recording
from zoo.lazy import Tensor
from zoo.model.encoder_decoder import shift_right
from zoo.model.head import NoHead, describe_lack
from zoo.model.task_head import RegressionHead, SequenceHead, TokenHead

if TYPE_CHECKING:
    from pathlib import Path

    from zoo.model.tower import Topology
    from zoo.run.layer import Model

CACHE = next(each.name for each in fields(CausalLMOutputWithPast) if each.name in ("cache", "past_key_values"))
"""The name of a cache in arguments and outputs: `past_key_values` in older versions of transformers."""


def replace_head(spec: Topology, head: Any) -> Topology:
    """Replace a Spec's head (for an encoder-decoder, its decoder's)."""
    if spec.kind == "encoder_decoder":
        return replace(spec, decoder=replace(spec.decoder, head=head))  # type: ignore[type-var, attr-defined]
    return replace(spec, head=head)  # type: ignore[type-var]


def require_tokens(spec: Topology, kind: str) -> Topology:
    """Return a Spec of this kind whose head predicts tokens. Raises ConfigError for any other."""
    head = list(spec.towers().values())[-1].head
    if spec.kind != kind:
        raise ConfigError(f"kind: is {spec.kind!r}, and this class is for a model of kind {kind!r}")
    if not head.predicts_tokens:
        raise ConfigError(f"head: {describe_lack(head)} (AutoModel, or the class for its task)")
    return spec


def find_class(spec: Topology) -> type[ZooPreTrainedModel]:
    """Find the class for a Spec by its head. Raises ConfigError if transformers has no task for the head."""
    head = list(spec.towers().values())[-1].head
    if head.predicts_tokens:
        kinds = {"decoder": ZooForCausalLM, "encoder": ZooForMaskedLM, "encoder_decoder": ZooForSeq2SeqLM}
        return kinds[spec.kind]
    tasks = {"none": ZooModel, "token": ZooForTokenClassification}
    tasks |= dict.fromkeys(("sequence", "regression"), ZooForSequenceClassification)
    if head.kind not in tasks:
        raise ConfigError(f"head: is of kind {head.kind!r}, which none of these classes has (another head)")
    return tasks[head.kind]


def wrap(model: Model, **fields: Any) -> ZooPreTrainedModel:
    """Wrap a built model in the transformers class for its head. Both share their weights. `fields` are further fields
    of the config, such as `eos_token_id`."""
    config = ZooConfig(model=to_dict(model.spec), **fields)
    with torch.device("meta"):
        wrapped = find_class(model.spec)(config)
    wrapped.take(model)
    return wrapped.train(model.training)


def load(path: str | Path, dtype: Any = None, device: str = "cpu") -> ZooPreTrainedModel:
    """Load a run, a checkpoint, a Hugging Face folder or a GGUF file, as `zoo.load` does, as a transformers model. The
    ids of special tokens come from the folder's config.json, or else from its tokenizer."""
    folder = find(path)
    model: Any = store.load(folder, dtype, device)
    source = getattr(model, "source", None)
    known = read_special_ids(folder, model.spec.vocab_size) if source is None else source.config
    ids = {name: known[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id") if name in known}
    return wrap(model, **ids)


class ZooModel(ZooPreTrainedModel):
    """A model without its head: hidden states, and a pooler's vector if the Spec has a pooler."""

    @classmethod
    def fit(cls, spec: Topology, config: ZooConfig) -> Topology:
        return replace_head(spec, NoHead(vocab_size=spec.vocab_size))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPooling:
        """Compute hidden states [B, T, D] after the final norm; an encoder-decoder's decoder reads the start token, or
        `decoder_input_ids`."""
        given = {name: others.pop(name) for name in ("decoder_input_ids", "decoder_attention_mask") if name in others}
        how = {"types": token_type_ids, "positions": position_ids, "records": output_hidden_states, **given}
        done = self.read(input_ids, attention_mask, others, embeds=inputs_embeds, **how)
        found: Any = done.found
        return BaseModelOutputWithPooling(found["hidden"], found.get("pooled"), done.states)  # type: ignore[arg-type]


class LabelledModel(ZooPreTrainedModel):
    """Base of the models that compute all logits in one pass. `output` is transformers' class of their outputs."""

    output: ClassVar[Any]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **others: Any,
    ) -> Any:
        """Compute logits for token ids [B, T]: [B, T, V], or [B, C] of whole rows. With `labels`, of the same shape
        without the last dimension (−100: none), also transformers' loss. Raises ConfigError for vectors given to an
        encoder-decoder."""
        if inputs_embeds is not None and self.config.is_encoder_decoder:
            raise ConfigError("inputs_embeds: the decoder reads the source's token ids (give input_ids)")
        how = {"types": token_type_ids, "positions": position_ids, "records": output_hidden_states}
        done = self.read(input_ids, attention_mask, others, embeds=inputs_embeds, **how)
        return self.output(self.measure(done, labels, others), done.found["logits"], done.states)


class ZooForMaskedLM(LabelledModel):
    """An encoder that predicts masked tokens."""

    output = MaskedLMOutput

    @classmethod
    def fit(cls, spec: Topology, config: ZooConfig) -> Topology:
        return require_tokens(spec, "encoder")


class ZooForSequenceClassification(LabelledModel):
    """A model with a head for whole rows. If the Spec has another head, a new one is made for `num_labels` classes, or
    one number. The new head reads an encoder's first token, or a decoder's last token that is not padding."""

    output = SequenceClassifierOutput

    @classmethod
    def fit(cls, spec: Topology, config: ZooConfig) -> Topology:
        tower, count = config.writer, config.num_labels
        if tower.head.reads_rows and tower.head.n_logits == count:
            return spec
        how: dict[str, Any] = {"pooling": "last" if tower.causal else "cls"}
        if count == 1 or config.problem_type == "regression":
            return replace_head(spec, RegressionHead(n_outputs=count or 1, **how))
        return replace_head(spec, SequenceHead(labels=tuple((config.id2label or {}).values()), **how))  # type: ignore[arg-type]


class ZooForTokenClassification(LabelledModel):
    """A model with a head for each token. If the Spec has another head, a new one is made for `num_labels` classes."""

    output = TokenClassifierOutput

    @classmethod
    def fit(cls, spec: Topology, config: ZooConfig) -> Topology:
        head = config.writer.head
        if head.kind == "token" and head.n_logits == config.num_labels:
            return spec
        return replace_head(spec, TokenHead(labels=tuple((config.id2label or {}).values())))  # type: ignore[arg-type]


class GeneratingModel(ZooPreTrainedModel, GenerationMixin):
    """Base of the models that have transformers' `generate`; their cache is a `ZooCache`."""

    def start_cache(self, cache: Any, use_cache: bool | None) -> ZooCache | None:
        """Return the given cache, a new one if `use_cache` is true, or None. Raises TypeError for a cache of another
        class."""
        if cache is not None and not isinstance(cache, ZooCache):
            raise TypeError(f"{CACHE}: is a {type(cache).__name__} (ZooCache(model), or leave it out)")
        return ZooCache(self) if cache is None and use_cache else cache

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, *given: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Choose the columns of the next pass. Positions are left out: they follow from the mask. The cache is passed
        as `past_key_values`, by which peft distinguishes the first pass from later ones."""
        inputs = super().prepare_inputs_for_generation(input_ids, *given, inputs_embeds=inputs_embeds, **kwargs)  # type: ignore[attr-defined]
        inputs["past_key_values"] = inputs.pop(CACHE, None)
        return {name: each for name, each in inputs.items() if name not in ("position_ids", "cache_position")}

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], mode: Any, batch_size: int, max_cache_length: int
    ) -> None:
        """Make a cache of `max_cache_length` columns, padding included, unless the caller has one or wants none. Raises
        ConfigError for another `cache_implementation`."""
        stated = generation_config.cache_implementation
        if stated not in (None, "dynamic"):
            raise ConfigError(f"cache_implementation: is {stated!r}, and a model of ours has its own (leave it out)")
        if generation_config.use_cache is not False and model_kwargs.get(CACHE) is None:
            model_kwargs[CACHE] = ZooCache(self, max_cache_length)


class ZooForCausalLM(GeneratingModel):
    """A decoder that predicts the next token."""

    @classmethod
    def fit(cls, spec: Topology, config: ZooConfig) -> Topology:
        if getattr(spec, "prefix_lm", False):
            raise ConfigError(
                "prefix_lm: transformers does not tell a model how long the prompt is (prefix_lm: false, or AutoModel)"
            )
        return require_tokens(spec, "decoder")

    @property
    def base_model(self) -> nn.Module:
        return Backbone(self)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: ZooCache | None = None,
        past_key_values: ZooCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Compute logits [B, K, V] of the last `logits_to_keep` tokens (0: all; a tensor: the tokens with these
        indices). With `labels` [B, T] (−100: none) each token's loss is for the label after it. With `use_cache` a
        cache is made and returned."""
        cache = self.start_cache(cache if past_key_values is None else past_key_values, use_cache)
        picks = None if isinstance(logits_to_keep, int) else logits_to_keep
        how: dict[str, Any] = {"keep": (logits_to_keep or None) if picks is None else None, "cache": cache}
        how |= {"types": token_type_ids, "positions": position_ids, "records": output_hidden_states, "picks": picks}
        done = self.read(input_ids, attention_mask, others, embeds=inputs_embeds, **how)
        return CausalLMOutputWithPast(
            loss=self.measure(done, labels, others),  # type: ignore[arg-type]
            logits=done.found["logits"],  # type: ignore[arg-type]
            hidden_states=done.states,  # type: ignore[arg-type]
            **{CACHE: cache},  # type: ignore[arg-type]
        )


class ZooForSeq2SeqLM(GeneratingModel):
    """An encoder-decoder that writes a target."""

    def __init__(self, config: ZooConfig) -> None:
        super().__init__(config)
        self.loss_type = "ForMaskedLM"  # labels are not shifted: the decoder's inputs are
        self.generation_config.decoder_start_token_id = self.config.decoder_start_token_id

    @classmethod
    def fit(cls, spec: Topology, config: ZooConfig) -> Topology:
        return require_tokens(spec, "encoder_decoder")

    def take(self, model: Model) -> None:
        super().take(model)
        self.encoder.main_input_name = "input_ids"  # type: ignore[assignment] - generate asks the module

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return ReadingEncoder(self.encoder)

    def get_decoder(self) -> nn.Module:
        return self.decoder  # type: ignore[return-value]

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Shift labels [B, T] right, after the start token; −100 becomes the padding id, or 0."""
        filled = labels.masked_fill(labels == -100, self.config.pad_token_id or 0)
        return shift_right(filled, None, self.config.decoder_start_token_id)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        cache: ZooCache | None = None,
        past_key_values: ZooCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
        **others: Any,
    ) -> Seq2SeqLMOutput:
        """Compute logits [B, K, V] for `decoder_input_ids` [B, T], by default `labels` shifted right or the start
        token, after the encoder read `input_ids` [B, M]. With `labels` each token's loss is for the label at its
        place."""
        records = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        reader: Any = self.get_encoder()
        if encoder_outputs is None:
            encoder_outputs = reader(input_ids, attention_mask, records, inputs_embeds=inputs_embeds)
        memory = encoder_outputs[0]
        if decoder_input_ids is decoder_inputs_embeds is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        elif decoder_input_ids is decoder_inputs_embeds is None:
            decoder_input_ids = memory.new_full((len(memory), 1), self.spec.start_id, dtype=torch.long)  # type: ignore[attr-defined]
        cache = self.start_cache(cache if past_key_values is None else past_key_values, use_cache)
        how: dict[str, Any] = {"keep": logits_to_keep or None, "cache": cache, "records": records}
        how |= {"decoder": self.decoder, "embeds": decoder_inputs_embeds}
        how |= {"memory": {"memory": memory, "memory_mask": attention_mask}}
        done = self.read(decoder_input_ids, decoder_attention_mask, others, **how)  # type: ignore[arg-type]
        done.losses.extend(reader.losses)
        return Seq2SeqLMOutput(
            loss=self.measure(done, labels, others),  # type: ignore[arg-type]
            logits=done.found["logits"],  # type: ignore[arg-type]
            decoder_hidden_states=done.states,  # type: ignore[arg-type]
            encoder_last_hidden_state=memory,
            encoder_hidden_states=encoder_outputs[1] if len(encoder_outputs) > 1 else None,
            **{CACHE: cache},  # type: ignore[arg-type]
        )


class Backbone(nn.Module):
    """A decoder without its head. TRL computes its losses from hidden states and the head's matrix."""

    _tp_plan = _pp_plan = None

    def __init__(self, model: ZooForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **others: Any,
    ) -> BaseModelOutput:
        """Compute hidden states [B, T, D] after the final norm."""
        how: dict[str, Any] = {"embeds": inputs_embeds, "positions": position_ids}
        done = self.model.read(input_ids, attention_mask, others, keep=0, **how)
        return BaseModelOutput(done.found["hidden"])  # type: ignore[arg-type]


class ReadingEncoder(nn.Module):
    """An encoder with transformers' arguments and output, and the routers' `losses` of its last pass."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.losses = encoder, []

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> BaseModelOutput:
        """Compute hidden states [B, M, D] of a source [B, M], or of vectors [B, M, E] instead."""
        records = recording(self.encoder, bool(output_hidden_states))
        with records as states, read_input(self.encoder, input_ids, inputs_embeds) as ids:
            out = self.encoder(ids, attention_mask)
        self.losses = list(out.losses.values())
        states = (*states, out.hidden) if output_hidden_states else None
        return BaseModelOutput(out.hidden, states)  # type: ignore[arg-type]
