"""Describe a model to transformers: a config.json whose `model` is the plain data of a YAML."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from zoo.errors import ConfigError
from zoo.grammar import to_dict
from zoo.grammar.plain import from_dict
from zoo.model.head import ROOT
from zoo.run.builder import load_spec

if TYPE_CHECKING:
    from zoo.api import Named


SAID = ("hidden_size", "num_attention_heads")
"""Properties that peft reads from a config's dictionary. They are not written to config.json."""


class ZooConfig(PreTrainedConfig):
    """The config of a model that a YAML describes. `model` is the Spec as plain data, with every field, as in zoo.yaml.

    Fields that transformers and libraries above it read (hidden_size, vocab_size, id2label and so on) are properties
    computed from the Spec. They are not stored.
    """

    model_type = "zoo"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012 - transformers reads a list

    model: dict[str, Any] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    use_cache: bool = True

    def __post_init__(self, **others: Any) -> None:
        others = {name: value for name, value in others.items() if name not in SAID}
        head = self.writer and self.writer.head
        names = getattr(head, "labels", None) or ["LABEL_0"] * getattr(head, "n_outputs", 0)
        if self.id2label is None and names and others.get("num_labels") in (None, len(names)):
            self.id2label = dict(enumerate(names))
            self.label2id = {name: number for number, name in enumerate(names)}
        if self.model is not None:
            self.is_encoder_decoder = self.spec.kind == "encoder_decoder"
        if getattr(head, "kind", None) == "regression":
            self.problem_type = self.problem_type or "regression"
        super().__post_init__(**others)

    @classmethod
    def of(cls, model: Named, overrides: Iterable[str] = (), **fields: Any) -> ZooConfig:
        """Make the config of a packaged name, the path of a YAML, or a Spec. Raises ConfigError for a faulty model."""
        return cls(model=to_dict(load_spec(model, list(overrides))), **fields)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {name: getattr(self, name) for name in SAID}

    def to_diff_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_diff_dict().items() if name not in SAID}

    @property
    def spec(self) -> Any:
        """The model's Spec; None without a `model`. Raises ConfigError for a faulty one."""
        return self.model and _parse(json.dumps(self.model))

    @property
    def writer(self) -> Any:
        """The tower with the head: the only tower, or an encoder-decoder's decoder."""
        return self.spec and list(self.spec.towers().values())[-1]

    @property
    def vocab_size(self) -> int | None:
        """Number of tokens that the head predicts."""
        return self.writer and self.writer.output_vocab_size

    @vocab_size.setter
    def vocab_size(self, count: int) -> None:
        """Change the number of tokens. Raises ConfigError if a part has a value for each token."""
        self.model = resize(self.model, "vocab_size", count, ("", "encoder", "decoder", "embedding", "head"))

    @property
    def hidden_size(self) -> int | None:
        """Width of the residual stream, in channels."""
        return self.spec and self.spec.d_model

    @property
    def num_hidden_layers(self) -> int | None:
        """Number of layers; for an encoder-decoder, of its decoder."""
        return self.spec and self.spec.n_layers

    @property
    def num_attention_heads(self) -> int | None:
        """Largest number of query heads in a layer; None without attention."""
        blocks = self.writer.blocks.values() if self.model else ()
        return max((getattr(block.attention, "n_heads", 0) for block in blocks), default=0) or None

    @property
    def max_position_embeddings(self) -> int | None:
        """Longest sequence that the model supports, in tokens."""
        return self.spec and self.spec.max_seq_len

    @max_position_embeddings.setter
    def max_position_embeddings(self, tokens: int) -> None:
        """Change the longest sequence; a table of learned positions gets as many rows."""
        self.model = resize(self.model, "max_seq_len", tokens)

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the head reads the token table."""
        return bool(self.model and getattr(self.writer.head, "tied", False))

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, tied: bool) -> None:
        """Tie the head to the token table, or untie it. Raises ConfigError for a head that cannot be tied."""
        if tied == self.tie_word_embeddings:
            return
        self.model = copy.deepcopy(self.model)
        (self.model or {}).get("decoder", self.model)["head"]["tied"] = tied  # type: ignore[index, union-attr]
        self.spec  # noqa: B018 - raises what is wrong

    @property
    def logit_scale(self) -> float | None:
        """Factor of the logits; None for none. Read by libraries that compute logits themselves."""
        scale = getattr(self.writer and self.writer.head, "scale", None)
        return (self.writer.out_width or self.writer.d_model) ** -0.5 if scale == ROOT else scale

    @property
    def final_logit_softcapping(self) -> float | None:
        """Bound of the logits (softcap); None for none. Read by libraries that compute logits themselves."""
        return getattr(self.writer and self.writer.head, "softcap", None)

    @property
    def auto_map(self) -> dict[str, str]:
        """Files of custom code: none. TRL reads this for classes outside transformers."""
        return {}

    @property
    def decoder_start_token_id(self) -> int | None:
        """Token id with which an encoder-decoder's decoder starts."""
        return getattr(self.spec, "start_id", None)


@functools.lru_cache(32)
def _parse(text: str) -> Any:
    return from_dict(json.loads(text))


def resize(node: Any, name: str, size: int, owners: tuple[str, ...] = (), path: str = "") -> Any:
    """Give the dimension `name` of a model's node another size, wherever it is stated. If `owners` are given, raises
    ConfigError for any other part that has the dimension."""
    if not isinstance(node, Mapping):
        return node
    if owners and node.get(name) and path.rpartition(".")[2] not in owners:
        raise ConfigError(f"{path}.{name}: is of a part made for one size (a model without it)")
    resized = {key: resize(value, name, size, owners, f"{path}.{key}") for key, value in node.items()}
    return resized | ({name: size} if node.get(name) else {})
