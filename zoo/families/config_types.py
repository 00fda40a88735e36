"""Define the types of config.json and the JSON files next to it, for `zoo.untrusted`. Unknown keys are accepted."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from zoo.families.layering import MOST_LAYERS
from zoo.untrusted.json_file import JsonShape

LARGEST_VOCABULARY = 2**31 - 1

Mappings = dict[str, Any]


MOST_NEW_TOKENS = 2**20

TokenId = Annotated[int, Field(ge=-1, le=LARGEST_VOCABULARY)]
"""A token's id; -1 for no token."""


class InnerConfig(JsonShape):
    """The fields of a model's config that mean the same in every family. Fields of a single family are checked when its
    expressions read them (`Expression.value`)."""

    model_type: str | None = None
    architectures: list[str] | None = None
    dtype: str | Mappings | None = None
    torch_dtype: str | Mappings | None = None
    quantization_config: Mappings | None = None
    vocab_size: Annotated[int, Field(ge=0, le=LARGEST_VOCABULARY)] | None = None
    layer_types: Annotated[list[str], Field(max_length=MOST_LAYERS)] | None = None
    rope_scaling: Mappings | None = None
    rope_parameters: Mappings | None = None
    id2label: Mappings | None = None
    label2id: Mappings | None = None
    tie_word_embeddings: bool | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    bos_token_id: TokenId | list[TokenId] | None = None
    pad_token_id: TokenId | list[TokenId] | None = None


class GenerationFile(JsonShape):
    """The schema of generation_config.json: token ids, and the number of new tokens, which determines the memory to
    reserve. Sampling options are checked by `zoo.text.defaults`."""

    eos_token_id: TokenId | list[TokenId] | None = None
    bos_token_id: TokenId | list[TokenId] | None = None
    pad_token_id: TokenId | list[TokenId] | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS)] | None = None
    bad_words_ids: list[list[TokenId]] | None = None


class ConfigFile(InnerConfig):
    """The types of a config.json's fields, and of the configs nested in it."""

    text_config: InnerConfig | None = None
    llm_config: InnerConfig | None = None
    language_config: InnerConfig | None = None
    vision_config: Mappings | None = None
    encoder: InnerConfig | None = None
    decoder: InnerConfig | None = None


class IndexFile(JsonShape):
    """The schema of model.safetensors.index.json: the file of each tensor."""

    weight_map: dict[str, str]
    metadata: dict[str, Any] | None = None
