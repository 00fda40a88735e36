"""Restate a model in the form that llama.cpp computes, before it is written as a GGUF file. Hidden states or logits
stay equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.stored import StoredModel, StoredTensors
from zoo.errors import ConfigError
from zoo.grammar import to_dict
from zoo.lazy import Tensor
from zoo.model.encoder_decoder import EncoderDecoder
from zoo.model.head import ROOT, LMHead, NoHead
from zoo.model.position.absolute import Learned
from zoo.model.task_head import RowHead

if TYPE_CHECKING:
    from zoo.checkpoint.stored import WholeSpec
    from zoo.model.tower import Tower

    Change = Callable[[Tensor], Tensor]


def find_row_head(spec: WholeSpec) -> RowHead | None:
    """Find the model's head if it reads whole rows; otherwise None."""
    head = None if isinstance(spec, EncoderDecoder) else spec.head
    return head if isinstance(head, RowHead) else None


def restate(model: StoredModel) -> tuple[StoredModel, list[str]]:
    """Restate an encoder or an encoder-decoder in the form that llama.cpp computes; a decoder is returned unchanged.
    Also returns the names of the parts that are left out.

    - llama.cpp's encoders give hidden states, or the logits of a head that reads whole rows. Other heads and a pooler
      are left out.
    - Every token has the first token type, also in a second text.
    - A table of positions begins at position 0. RoBERTa's rows before it, which only padding reads, are left out.
    - T5's tied head scales logits by 1/√d_model, mT5's does not, and the file cannot say which. The head becomes a
      matrix of its own with the scale multiplied in, because llama.cpp does not scale.

    Raises ConfigError for an encoder with a head that reads single tokens for a task, and for a decoder whose head
    gives one number per row: llama.cpp takes the softmax of a decoder's logits.
    """
    spec = model.spec
    if isinstance(spec, EncoderDecoder):
        return _scale_head(model, spec), []
    if spec.causal:
        if spec.head.reads_rows and spec.head.n_logits == 1:
            raise ConfigError("head: has one output, of which llama.cpp would take the softmax, always 1 (--to hf)")
        return model, []
    if spec.head.reads_text and not spec.head.reads_rows:
        would = "mlm, none, sequence or regression"
        raise ConfigError(f"head: is kind '{spec.head.kind}', which is not written to GGUF ({would})")
    has = {"head": spec.head.kind != "none" and not spec.head.reads_rows, "pooler": spec.pooler is not None}
    has["token types but the first"] = spec.head.reads_rows and (getattr(spec.embedding, "n_types", None) or 1) > 1
    return _restate_encoder(model, spec), [name for name, is_there in has.items() if is_there]


def _restate_encoder(model: StoredModel, tower: Tower) -> StoredModel:
    head = tower.head if tower.head.reads_rows else NoHead(vocab_size=tower.vocab_size)
    left = ("pooler",) if tower.head.reads_rows else ("head", "pooler")
    kept = {name: form for name, form in model.tensors.forms.items() if name.split(".")[0] not in left}
    spec, changes = replace(tower, head=head, pooler=None), {}
    if isinstance(tower.position, Learned) and tower.position.offset:
        offset, position = tower.position.offset, replace(tower.position, offset=0, skip_id=None)
        spec = type(tower).parse(_exchange(to_dict(spec), to_dict(tower.position), to_dict(position)))
        changes = {"position.table.weight": lambda table: table[offset:]}
    return replace(model, spec=spec, tensors=_change(model.tensors, kept, changes))


def _exchange(node: Any, old: object, new: object) -> Any:
    """Replace each part of a node that equals `old` by `new`. Layers repeat the model's position, for example."""
    if isinstance(node, dict):
        return new if node == old else {key: _exchange(each, old, new) for key, each in node.items()}
    return [_exchange(each, old, new) for each in node] if isinstance(node, list) else node


def _scale_head(model: StoredModel, spec: EncoderDecoder) -> StoredModel:
    head = spec.decoder.head
    if not isinstance(head, LMHead) or not head.tied:
        return model
    scale = spec.d_model**-0.5 if head.scale == ROOT else float(head.scale)
    table, own = "encoder.embedding.tokens.weight", "decoder.head.out.weight"
    forms = {**model.tensors.forms, own: model.tensors.forms[table]}
    tensors = _change(model.tensors, forms, {own: lambda weight: weight * scale}, {own: table})
    decoder = replace(spec.decoder, head=replace(head, tied=False, scale=1.0))
    return replace(model, spec=replace(spec, decoder=decoder), tensors=tensors)


def _change(
    tensors: StoredTensors,
    forms: Mapping[str, Tensor],
    changes: Mapping[str, Change],
    sources: Mapping[str, str] | None = None,
) -> StoredTensors:
    """Make the tensors of `forms`: each is read under its name in `sources`, or its own, and converted by `changes`."""
    changed = {name: changes[name](form) if name in changes else form for name, form in forms.items()}

    def read(name: str) -> Tensor:
        tensor = tensors[(sources or {}).get(name, name)]
        return changes[name](tensor) if name in changes else tensor

    return StoredTensors(changed, read)
