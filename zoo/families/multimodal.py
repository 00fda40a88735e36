"""Find the text model inside a multimodal config.json. conf/multimodal.yaml lists the models that are read."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zoo.families import family as families
from zoo.families.family import HARMLESS
from zoo.paths import read_conf

TEXT = ("text_config", "llm_config", "language_config")
"""Fields in which a multimodal model has the config of its text model."""

TIED = "tie_word_embeddings"


@dataclass(frozen=True)
class TensorPrefixes:
    """The prefixes of a text model's tensors in a multimodal file: `base` replaces the prefix of the model's class,
    `head` begins the names of the head."""

    base: str
    head: str


@dataclass(frozen=True)
class Catalogue:
    """conf/multimodal.yaml as data. `models` are the types whose text model can be loaded. `flat` maps types with text
    fields at the top level to the type of the text model, and `renamed` older types of text models to today's.
    `layouts` are the possible prefixes of names."""

    models: tuple[str, ...]
    flat: Mapping[str, str]
    renamed: Mapping[str, str]
    layouts: tuple[TensorPrefixes, ...]


@dataclass(frozen=True)
class Wrapper:
    """A multimodal config.json: `field` has the config of its text model (None: the text model's fields are at the top
    level), and `text` is that config, completed."""

    config: Mapping[str, Any]
    field: str | None
    text: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """The model_type of the multimodal config."""
        return str(self.config.get("model_type"))

    @property
    def is_read(self) -> bool:
        """Whether the text model can be loaded, rather than only priced."""
        return self.kind in read_catalogue().models

    def __str__(self) -> str:
        rest = ", ".join(key for key in self.config if key.endswith("_config") and key != self.field)
        where = f" ({self.field})" if self.field else ""
        return f"{self.kind}: its text model alone{where}, without {rest or 'what is beside it'}"

    def put_back(self, text: Mapping[str, Any]) -> dict[str, Any]:
        """Return the whole config with `text` as the config of its text model."""
        own = {key: value for key, value in text.items() if key != "architectures"}
        if self.field is None:
            return {**self.config, **own, "model_type": self.kind}
        tied = {TIED: own[TIED]} if TIED in own else {}
        return {**self.config, self.field: own, **tied}


@functools.cache
def read_catalogue() -> Catalogue:
    """Read the packaged list of multimodal models."""
    node = read_conf("multimodal")
    layouts = tuple(TensorPrefixes(**each) for each in node["layouts"])
    return Catalogue(tuple(node["models"]), node["flat"], node["renamed"], layouts)


def find_wrapper(config: Mapping[str, Any]) -> Wrapper | None:
    """Find the text model of a multimodal config. None for any other config, and for an unknown text model."""
    kind = str(config.get("model_type"))
    flat = read_catalogue().flat.get(kind)
    if flat is None and families.find_name(config.get("model_type")):
        return None
    for name in TEXT:
        inner = {"model_type": f"{kind}_text", **stated} if isinstance(stated := config.get(name), Mapping) else {}
        kept = read_catalogue().renamed.get(str(inner.get("model_type")))
        inner |= {"model_type": kept} if kept else {}
        if families.find_name(inner.get("model_type")):
            return Wrapper(config, name, _complete(inner, config))
    if flat is not None and not any(isinstance(config.get(name), Mapping) for name in TEXT):
        family = families.family_of_config({"model_type": flat}, kind)
        plain = {key: value for key, value in config.items() if key in family.known and not key.endswith("_config")}
        return Wrapper(config, None, _complete({**plain, "model_type": flat}, config))
    return None


def _complete(inner: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Take over the whole config's `tie_word_embeddings` if it states one, and drop token ids of images and sounds from
    the text model's config."""
    plain = {key: value for key, value in inner.items() if not _names_token(key) and key != "architectures"}
    shared = {TIED: config[TIED]} if TIED in config else {}  # where both state it, transformers reads the whole's
    return {**plain, **shared}


def _names_token(key: str) -> bool:
    return key.endswith(("_token_id", "_token_index")) and key not in HARMLESS
