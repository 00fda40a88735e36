"""Validate the `data` node of a config: a class for each kind of source, and one for a mix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, PlainValidator, PositiveInt, ValidationError, field_validator

from zoo.data.chat.forms import FORMS, Conversations
from zoo.data.chat.template import NAMED, ChatTemplate
from zoo.data.corpus import Documents, WithValidation, open_stdlib_corpus, open_text_corpus
from zoo.data.parquet import Parquet
from zoo.data.records import JsonLines, RecordFiles, RecordSource, find_files, name_keys
from zoo.data.tokenizer_settings import BPE, Default, TokenizerSettings
from zoo.errors import ConfigError
from zoo.spec import Spec
from zoo.spec.faults import make_refusals

if TYPE_CHECKING:
    from pydantic import ValidationInfo


ALWAYS_RENDERED = ("messages", "sharegpt", "alpaca")
"""The record formats that need a chat template. Records of the others may be plain texts."""
SPLIT_TEMPLATE = (
    "data.tokenizer.split_special_tokens: is true, and transformers would split the special tokens of the chat "
    "template (null, or false)"
)
TEXT_FIELD = "text"
NOT_FOR_TEXT = "is of conversations, and the records have no data.form, found {!r} (null, or data.form=messages)"


def parse_node(kind: Any, node: object, where: str = "") -> Any:
    """Validate a resolved node as a component. Raises ConfigError with all of its faults, at paths below `where`."""
    try:
        return kind.parse(node)
    except ValidationError as error:
        found = [((where,) * bool(where) + each["loc"], each["msg"]) for each in error.errors(include_url=False)]
        raise ConfigError(*(f"{'.'.join(map(str, place))}: {fault}" for place, fault in found)) from error


class DataSettings(Spec, axis="data", default="stdlib"):
    """The `data` node of a training config: a source of text, its tokenizer and its split."""

    tokenizer: TokenizerSettings = Field(default_factory=BPE)
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    max_bytes: PositiveInt | None = None
    documents: bool = False

    @classmethod
    def read(cls, node: Mapping[Any, Any], where: str = "data") -> DataSettings:
        """Validate a resolved node. Raises ConfigError with all of its faults, at paths below `where`."""
        return parse_node(cls, node, where)

    @property
    def sources(self) -> dict[str, WeightedSource]:
        """The sources by name. All kinds but a mix have one, named ""."""
        return {"": WeightedSource(Fraction(1), self)}

    @property
    def content(self) -> str:
        """The kind of content: `text`, `pairs` (a source and a target), `conversations`, `preferences` (a better and a
        worse answer) or `judgements` (an answer, good or not)."""
        return "text"

    @property
    def written(self) -> bool:
        """Whether the documents are conversations, which a chat template writes."""
        return self.content in ("conversations", "preferences", "judgements")

    @property
    def chosen_template(self) -> str | None:
        """The chat template that the user has chosen: a name or a file."""
        return getattr(self, "template", None)

    @property
    def needs_template(self) -> bool:
        """Whether the config states a chat template, or the format of a source needs one."""
        forms = {getattr(each.settings, "form", None) for each in self.sources.values()}
        return self.chosen_template is not None or not forms.isdisjoint(ALWAYS_RENDERED)

    @property
    def apart(self) -> bool:
        """Whether a row holds several documents that do not attend to one another."""
        if self.content == "conversations":
            return getattr(self, "packing", None) is not False
        return self.documents

    def open(self, template: ChatTemplate | None = None, *, whole: bool = False) -> Documents:
        """Open the source as documents; unless `whole`, with the documents that the setting `validation` names.
        `template` renders conversations. Raises ConfigError if a source is missing."""
        train = self.open_part(template)
        if whole or getattr(self, "validation", None) is None:
            return train
        return WithValidation(train, self.open_part(template, validation=True))

    def open_part(self, template: ChatTemplate | None, *, validation: bool = False) -> Documents:
        """Open the documents at `path`, or with `validation` the documents that the setting `validation` names."""
        raise NotImplementedError


class WeightedSource(NamedTuple):
    """A source of a mix and its weight: its share of the rows relative to the other sources."""

    weight: Fraction
    settings: DataSettings


class Stdlib(DataSettings, kind="stdlib"):
    """The source code of Python's standard library on this machine, without its tests."""

    path: str | None = None

    @field_validator("path")
    @classmethod
    def is_not_read_from_a_path(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError(f"data=stdlib reads Python's own source, found {value!r} (data=text data.path={value})")
        return value

    def open_part(self, template: ChatTemplate | None, *, validation: bool = False) -> Documents:
        return open_stdlib_corpus()


class TextSettings(DataSettings, kind="text"):
    """A text file, or every file below a folder, except hidden ones. Each file is a document. `validation` names the
    text that validates (null: `validation_fraction` of all text)."""

    path: Annotated[str | None, Default] = None
    validation: str | None = None

    @field_validator("path")
    @classmethod
    def is_given(cls, value: str | None) -> str | None:
        if not value:
            raise ValueError("data=text needs a text, found none (data.path=FILE_OR_FOLDER)")
        return value

    def open_part(self, template: ChatTemplate | None, *, validation: bool = False) -> Documents:
        name = "validation" if validation else "path"
        return open_text_corpus(getattr(self, name), f"data.{name}")


class RecordSettings(DataSettings):
    """Records with fields. A record is the text in `field` (null: `text`), or the pair in `source` and `target`; an
    objective with labels names its fields itself. `validation` names the validation records: files, or for `hf` a split
    (null: `validation_fraction` of all records).

    With a `form` a record is a conversation (`messages`, `prompt_completion`, `sharegpt`, `alpaca`), a prompt with two
    answers to compare (`preference`), or a prompt with a judged answer (`unpaired`). `template` renders the
    conversation: a built-in template or a file; null is the template in the tokenizer's folder. A row holds several
    conversations that do not attend to one another, or only one if `packing` is false.
    """

    reader: ClassVar[type[RecordFiles]]
    """The reader of this kind's files."""

    path: Annotated[str | None, Default] = None
    field: str | None = None
    source: str | None = None
    target: Annotated[str | None, Default] = None
    validation: str | None = None
    form: Literal["messages", "prompt_completion", "sharegpt", "alpaca", "preference", "unpaired"] | None = None
    """The format of conversations; null: a record is a text or a pair. `messages`: a list of messages with role and
    content, and `tools`; `prompt_completion`: two texts, or two lists of messages; `sharegpt`: a list `conversations`
    of `from` and `value`; `alpaca`: `instruction`, `input` and `output`, by Alpaca's prompt; `preference`: `prompt`,
    `chosen` and `rejected`; `unpaired`: `prompt`, `completion` and a `label` (true or false)."""
    template: str | None = None
    """The chat template of conversations; null: the template in the tokenizer's folder. `plain`: lines of `role:
    content` with an end of text after each answer, for any tokenizer; `chatml`: for a tokenizer with ChatML's special
    tokens; `FILE`: a Jinja file."""
    packing: bool | None = None
    """Whether a row packs several conversations, which do not attend to one another; null: true. `false`: one per
    row."""

    @field_validator("path")
    @classmethod
    def is_given(cls, value: str | None) -> str | None:
        if not value:
            raise ValueError(f"data={cls.kind} needs records, found none (data.path={cls.example()})")
        return value

    @field_validator("target")
    @classmethod
    def makes_a_pair(cls, value: str | None, info: ValidationInfo) -> str | None:
        field, source = info.data.get("field"), info.data.get("source")
        if (value is None) != (source is None):
            lacks, has = ("target", source) if value is None else ("source", value)
            raise ValueError(f"a pair has a source and a target, found {has!r} alone (data.{lacks}=FIELD)")
        if value is not None and field is not None:
            raise ValueError(f"a record is one text or a pair, found field: {field} beside a pair (field: null)")
        if value is not None and info.data.get("documents"):
            raise ValueError("a row of pairs holds one of them, found documents: true beside a pair (documents: false)")
        return value

    @field_validator("form")
    @classmethod
    def has_these_fields(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        for name in ("field", "source", "target"):
            if info.data.get(name) is not None and name not in FORMS[value].named:
                raise ValueError(f"{value} has no such field to name, found {name}: {info.data[name]} ({name}: null)")
        if info.data.get("documents"):
            raise ValueError("conversations are kept apart always, found documents: true (documents: false)")
        return value

    @field_validator("template", "packing")
    @classmethod
    def is_of_conversations(cls, value: Any, info: ValidationInfo) -> Any:
        form = info.data.get("form")
        if form is None:
            if value is not None:
                raise ValueError(NOT_FOR_TEXT.format(value))
        elif value and info.field_name == "packing" and FORMS[form].content != "conversations":
            raise ValueError(f"answers to compare have rows of their own, found packing: true beside {form} (null)")
        return value

    @classmethod
    def example(cls) -> str:
        return "FILE_OR_FOLDER"

    def open_part(self, template: ChatTemplate | None, *, validation: bool = False) -> Documents:
        if self.form is None:
            return self.open_records(self.columns, name_keys(self.columns), validation)
        form = FORMS[self.form]
        keys = " ".join(f"data.{name}=NAME" for name in form.named) or "another data.form"
        records = self.open_records(self.columns, keys, validation, form.optional)
        return Conversations(records, form, template, keys)

    @property
    def content(self) -> str:
        if self.form is not None:
            return FORMS[self.form].content
        return "text" if self.target is None else "pairs"

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields to read: the text's, the source's and the target's, or those of the form."""
        if self.form is not None:
            named, own = FORMS[self.form].named, FORMS[self.form].columns
            return tuple(getattr(self, name) or default for name, default in zip(named, own, strict=False)) or own
        if self.source is not None and self.target is not None:
            return (self.source, self.target)
        return (self.field or TEXT_FIELD,)

    def open_records(
        self, columns: tuple[str, ...], keys: str, validation: bool = False, optional: tuple[str, ...] = ()
    ) -> RecordSource:
        """Open the records at `path`, or with `validation` those that this setting names, to read `columns` and, if
        present, `optional` fields. `keys` are the config keys that chose the columns. Raises ConfigError if there are
        no files."""
        name = "validation" if validation else "path"
        files = find_files(str(getattr(self, name)), self.reader.suffixes, f"data.{name}")
        return self.reader(files, columns, keys, optional)


class Jsonl(RecordSettings, kind="jsonl"):
    """JSON Lines: a file, a folder of them, or a pattern (`*.jsonl`); gzip and zstd are decompressed."""

    reader: ClassVar[type[RecordFiles]] = JsonLines


class ParquetFiles(RecordSettings, kind="parquet"):
    """Parquet: a file, a folder of them, or a pattern (the extra `parquet`)."""

    reader: ClassVar[type[RecordFiles]] = Parquet


class HF(RecordSettings, kind="hf"):
    """A data set of Hugging Face's `datasets` (the extra `hf`): a folder on disk, or a name on the hub.

    `split` null is `train`, or the only split of a saved folder. `streaming` reads over the network once in each of two
    passes, without a copy on disk; `max_rows` takes only the first rows.
    """

    name: str | None = None
    split: str | None = None
    streaming: bool = False
    max_rows: PositiveInt | None = None

    @classmethod
    def example(cls) -> str:
        return "FOLDER_OR_NAME"

    def open_records(
        self, columns: tuple[str, ...], keys: str, validation: bool = False, optional: tuple[str, ...] = ()
    ) -> RecordSource:
        from zoo.data.hub import open_dataset

        return open_dataset(replace(self, split=self.validation) if validation else self, columns, keys)


SHARED = ("tokenizer", "validation_fraction", "documents", "template", "packing")
"""Settings that a mix states once for all of its sources."""


def read_weighted(node: object) -> WeightedSource:
    """Validate one source of a mix; a WeightedSource is returned unchanged. Raises ValueError if the node is not a
    mapping, and ValidationError with all faults of a mapping."""
    if isinstance(node, WeightedSource):
        return node
    if not isinstance(node, Mapping):
        raise ValueError(f"a source is a node with a kind and a weight, found {node!r} ({{kind: text, weight: 1, …}})")
    fields = dict(node)
    weight = fields.pop("weight", None)
    faults = [
        ((name,), f"a mix has one for all of its sources, found one here (data.{name})")
        for name in SHARED
        if name in fields
    ]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        faults.append((("weight",), f"is a number above 0, found {weight!r} (a share of the rows, as 1 or 0.7)"))
    if fields.get("kind") == "mix":
        faults.append((("kind",), "a mix holds no other mix, found one (its sources beside the others)"))
    if faults:
        raise make_refusals(DataSettings, faults)
    return WeightedSource(Fraction(str(weight)), DataSettings.parse(fields))


class Mix(DataSettings, kind="mix"):
    """Several sources: `of: {name: {weight: 7, kind: text, …}}`. Of any first n rows, each source gives the share that
    its weight states, ± 1."""

    of: Annotated[
        dict[str, Annotated[Any, PlainValidator(read_weighted, json_schema_input_type=dict[str, str])]] | None, Default
    ] = None
    template: str | None = None
    packing: bool | None = None

    @field_validator("template", "packing")
    @classmethod
    def is_of_conversations(cls, value: Any, info: ValidationInfo) -> Any:
        sources = info.data.get("of") or {}
        if value is not None and not all(each.settings.written for each in sources.values()):
            raise ValueError(NOT_FOR_TEXT.format(value))
        return value

    @field_validator("max_bytes")
    @classmethod
    def is_each_sources_own(cls, value: int | None) -> int | None:
        if value is not None:
            raise ValueError(f"a mix limits each source by itself, found {value} (data.of.NAME.max_bytes={value})")
        return value

    @field_validator("of")
    @classmethod
    def has_sources_with_names(cls, value: dict[str, WeightedSource] | None) -> dict[str, WeightedSource] | None:
        if not value:
            raise ValueError("data=mix needs sources, found none (data.of={a: {kind: stdlib, weight: 1}, …})")
        if odd := [name for name in value if not re.fullmatch(r"[A-Za-z0-9_-]+", name)]:
            raise ValueError(f"a source's name is the name of a folder, found {odd[0]!r} (letters, digits, _ and -)")
        if len({each.settings.content for each in value.values()}) > 1:
            found = ", ".join(f"{each.settings.content} in {name}" for name, each in sorted(value.items()))
            raise ValueError(f"sources give one thing, found {found} (one thing for all)")
        return value

    @property
    def sources(self) -> dict[str, WeightedSource]:
        assert self.of is not None
        return self.of

    @property
    def content(self) -> str:
        return next(iter(self.sources.values())).settings.content


def make_paths_absolute(node: object) -> None:
    """Make the paths of a `data` node absolute, in place, because a run may be resumed from another folder.

    A name on the hub is left unchanged.
    """
    if not isinstance(node, dict):
        return
    for each in (node, node.get("tokenizer"), *((node.get("of") or {}).values())):
        if not isinstance(each, dict) or not isinstance(path := each.get("path"), str):
            continue
        place = Path(path).expanduser()
        if each.get("kind") != "hf" or place.exists():
            each["path"] = str(place.absolute())
        if each.get("kind") != "hf" and isinstance(other := each.get("validation"), str):
            each["validation"] = str(Path(other).expanduser().absolute())
    if isinstance(template := node.get("template"), str) and template not in NAMED:
        node["template"] = str(Path(template).expanduser().absolute())
