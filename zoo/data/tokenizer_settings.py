"""Validate the `data.tokenizer` node: a kind for each tokenizer."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from zoo.spec import Spec

Default = Field(validate_default=True)
"""Marks a field whose default is validated too, because some kinds refuse the default."""


class TokenizerSettings(Spec, axis="tokenizer", default="bpe"):
    """The node `data.tokenizer`. A field that the kind does not use must stay null."""

    vocab_size: Annotated[int, Field(ge=257)] | None = None
    path: Annotated[str | None, Default] = None
    eos: str | None = None
    add_special_tokens: bool | None = None
    split_special_tokens: bool | None = None

    @classmethod
    def parse(cls, node: object) -> TokenizerSettings:
        """Read a node, or the name of a kind alone: `data.tokenizer=byte`."""
        return super().parse({"kind": node} if isinstance(node, str) else node)

    @property
    def adds(self) -> bool:
        """Whether encoding adds the tokens that the tokenizer's file puts around a text."""
        return self.add_special_tokens is not False

    @property
    def splits(self) -> bool | None:
        """Whether special tokens spelled in a text are plain characters. The default is true for a tokenizer that Zoo
        makes. For a tokenizer read from a file it is None: its tokenizer_config.json decides, and the default is false,
        as in transformers."""
        stated = self.split_special_tokens
        return True if stated is None and self.kind != "file" else stated

    @field_validator("vocab_size")
    @classmethod
    def only_bpe_has_a_size(cls, value: int | None) -> int | None:
        if cls.kind != "bpe" and value is not None:
            raise ValueError(f"a {cls.kind} tokenizer has the size it has, found {value} (null, or kind: bpe)")
        return value

    @field_validator("path")
    @classmethod
    def only_a_file_has_a_path(cls, value: str | None) -> str | None:
        if cls.kind == "file" and not value:
            raise ValueError("kind: file needs a tokenizer.json, found none (a file, or a folder that has one)")
        if cls.kind != "file" and value is not None:
            raise ValueError(f"a {cls.kind} tokenizer is read from no file, found {value!r} (null, or kind: file)")
        return value

    @field_validator("eos")
    @classmethod
    def only_a_file_names_its_eos(cls, value: str | None) -> str | None:
        if cls.kind != "file" and value is not None:
            raise ValueError(f"only kind: file has an end of text of its own, found {value!r} (null)")
        return value

    @field_validator("add_special_tokens")
    @classmethod
    def only_a_file_adds_tokens(cls, value: bool | None) -> bool | None:
        if cls.kind != "file" and value is not None:
            raise ValueError(f"a {cls.kind} tokenizer adds no tokens to a text, found {value} (null, or kind: file)")
        return value


class BPE(TokenizerSettings, kind="bpe"):
    """A byte-level BPE, trained on the training split. `vocab_size` includes the end of text; null is 4096."""


class Bytes(TokenizerSettings, kind="byte"):
    """A token for each byte, and the end of text."""


class TokenizerFile(TokenizerSettings, kind="file"):
    """The tokenizer.json at `path`, or in the folder there. `eos` names the token that ends a text. As in transformers,
    the tokens that the file puts around a text are added (`add_special_tokens`), and special tokens spelled in a text
    are special unless `split_special_tokens` (null: as tokenizer_config.json says)."""
