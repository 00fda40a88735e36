# N texts, T tokens, C classes or numbers
"""Predict labels with a model that has a task head: a class or numbers for each text, pair or conversation, or a tag
for each word."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoo.checkpoint.sentence_files import PROMPTS, PromptsFile, read_settings
from zoo.data.corpus import FAULTS_SHOWN
from zoo.errors import ConfigError, ZooError, name_options, refuse
from zoo.families.described import CONFIG, read_config
from zoo.lazy import Tensor, torch
from zoo.text.reader import load_reader, longest_text, pad_rows
from zoo.untrusted.printable import check_text, quote, shorten

if TYPE_CHECKING:
    from zoo.data.chat.template import ChatTemplate
    from zoo.data.rowcode import EncodedRow, RowEncoder
    from zoo.data.tokenizer import Tokenizer
    from zoo.model.head import Head
    from zoo.model.tower import Topology
    from zoo.run.layer import Model

Texts = str | tuple[str, str] | list[str] | list[dict[str, Any]]
"""A text, a pair of texts, a list of words to tag, or the messages of a conversation."""

Activation = Literal["sigmoid", "softmax", "none"]
ACTIVATIONS: tuple[Activation, ...] = ("sigmoid", "softmax", "none")


def score(
    model: str | Path | Model,
    texts: Sequence[Texts],
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    every: bool = False,
    activation: Activation | None = None,
    template: str | None = None,
    places: Sequence[str] | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    note: Callable[[str], object] | None = None,
) -> list[dict[str, Any]]:
    """Predict the label of each text. `model` is a folder, or a model with its `tokenizer` (a tokenizer.json or its
    folder). A text is a string, a pair of strings, or a conversation (messages with role and content), rendered with
    the tokenizer's chat template or the one that `template` names. A head that tags words reads lists of words, or a
    string split at white space.

    Each result has `predicted`. For tags it is a list with the tag of each word, None for a truncated word; for numbers
    a number, or a list if the head gives several. For classes it depends on the activation:

    - softmax: the most probable class, with its `probability`;
    - sigmoid: the list of all classes with a probability above one half;
    - none: the class with the highest logit, with this `logit`.

    With `every` the result for classes also has the `probabilities` of all, or the `logits` if the activation is none.

    `activation` is applied to the logits of classes and numbers. By default the folder's configs decide
    (sentence-transformers' CrossEncoder, or the `problem_type` multi_label_classification, which means sigmoid), else
    softmax for classes and none for numbers. `places` are the texts' names in error messages. `note` gets a line on
    texts longer than the model's positions. Raises ConfigError for a model without a task head, and for texts or an
    activation that the head does not take; ZooError for logits that are not finite.
    """
    from zoo.checkpoint import store
    from zoo.data.rowcode import RowEncoder
    from zoo.data.tokenizer import Tokenizer

    head = find_task_head(store.load_spec(model) if isinstance(model, str | Path) else model.spec)
    reader = load_reader(model, tokenizer, device, note)
    activation = settle_activation(head, activation, reader.folder)
    texts = [text.split() if isinstance(text, str) and not head.reads_rows else text for text in texts]
    places = [f"texts: number {number}" for number in range(1, len(texts) + 1)] if places is None else places
    check_texts(texts, places, by_word=not head.reads_rows)
    backend = reader.tokenizer if isinstance(reader.tokenizer, Tokenizer) else Tokenizer.load(reader.tokenizer)
    limit = longest_text(reader.model.spec)
    encoder = RowEncoder(backend, limit, opens=getattr(head, "pooling", None) == "cls")
    chat = _load_template(reader.tokenizer, template) if any(map(is_conversation, texts)) else None
    rows = encode(encoder, texts, places, chat)
    if (cut := sum(row.cut for row in rows)) and note is not None:
        note(f"{cut} of {len(rows)} texts are cut at {limit} tokens, which is what the model reads")
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))  # sorted by length: less padding
    found: dict[int, dict[str, Any]] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        logits = compute_logits(reader.model, [rows[index] for index in batch])
        for index, own in zip(batch, logits, strict=True):
            if not own.isfinite().all():
                raise ZooError(f"{places[index]}: its logits are not finite (weights that are whole)")
            found[index] = read_result(head, rows[index], own, activation, every)
    return [found[index] for index in range(len(rows))]


def find_task_head(spec: Topology) -> Head:
    """Find a model's task head. Raises ConfigError if it has none."""
    heads = [tower.head for tower in spec.towers().values() if tower.head.n_logits]
    if not heads or not heads[-1].reads_text:
        kind = heads[-1].kind if heads else "none"
        found = f"found head '{kind}' of an {spec.kind}" if spec.kind[0] == "e" else f"found head '{kind}'"
        raise ConfigError(f"score: needs a head for a task, {found} (zoo train objective=classify, tag or regress)")
    return heads[-1]


# ---------------------------------------------------------------- from logits to labels


def settle_activation(head: Head, chosen: str | None, folder: Path | None) -> Activation:
    """Choose the activation of the head's logits: the `chosen` one, else the folder's, else softmax for classes and
    none for numbers. Raises ConfigError for an activation that the head cannot have."""
    usual: Activation = "softmax" if hasattr(head, "labels") else "none"
    if chosen is None:
        said = None if folder is None else read_activation(folder, classes=usual == "softmax")
        return said or usual
    if chosen not in ACTIVATIONS:
        would = name_options(chosen, ACTIVATIONS)
        raise ConfigError(f"activation: {chosen!r} is none{would}")
    if chosen == "softmax" and usual == "none":
        raise ConfigError("activation: softmax is over classes, and the head gives numbers (sigmoid, or none)")
    return chosen  # type: ignore[return-value]


def read_activation(folder: Path, *, classes: bool) -> Activation | None:
    """Read the activation of a published folder: a CrossEncoder's function, or sigmoid for multi-label classes. None if
    the folder states none, or Identity. Raises ConfigError for a function that zoo lacks."""
    config = read_config(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    beside = read_settings(folder / PROMPTS, PromptsFile)
    own = config.get("sentence_transformers")
    named = own.get("activation_fn") if isinstance(own, Mapping) else None
    named = named or config.get("sbert_ce_default_activation_function") or beside.get("activation_fn")
    if named is None:
        return "sigmoid" if classes and config.get("problem_type") == "multi_label_classification" else None
    known: dict[str, Activation | None] = {"Sigmoid": "sigmoid", "Identity": None, "Softmax": "softmax"}
    name = str(named).rpartition(".")[2]
    if name not in known or (name == "Softmax" and not classes):
        raise ConfigError(
            f"{folder}: its activation_fn is {shorten(str(named))}, none of ours (--activation sigmoid or none)"
        )
    return known[name]


# ---------------------------------------------------------------- texts


def is_conversation(text: Texts) -> bool:
    """Whether a text is a list of messages."""
    return isinstance(text, list) and bool(text) and isinstance(text[0], Mapping)


def check_texts(texts: Sequence[Texts], places: Sequence[str], *, by_word: bool) -> None:
    """Raise ConfigError, with the first faults, for texts that are empty or of a type that the head does not read."""
    faults = []
    for text, place in zip(texts, places, strict=True):
        parts = text if isinstance(text, tuple | list) else (text,)
        strings = all(isinstance(part, str) for part in parts)
        if (isinstance(text, list) and not is_conversation(text)) is not by_word or not (
            strings or is_conversation(text)
        ):
            wanted = "a list of words, as each word gets a tag" if by_word else "a string, a pair, or messages"
            faults.append(f"{place} is {quote(text)} ({wanted})")
        elif not text or (isinstance(text, str) and text.isspace()):
            faults.append(f"{place} is empty (one that is not)")
        for part in parts:
            if isinstance(part, str):
                check_text(part, place)
    refuse(faults[:FAULTS_SHOWN])


def _load_template(tokenizer: str | Path | Tokenizer, chosen: str | None) -> ChatTemplate:
    from zoo.data.chat import template as chat

    if not isinstance(tokenizer, str | Path):
        raise ConfigError(
            "texts: a conversation needs a chat template, and the tokenizer has no folder (pass the folder)"
        )
    folder = Path(tokenizer)
    return chat.load(folder if folder.is_dir() else folder.parent, chosen)


def encode(
    encoder: RowEncoder, texts: Sequence[Any], places: Sequence[str], chat: ChatTemplate | None = None
) -> list[EncodedRow]:
    """Encode texts as in training, conversations rendered with the chat template. Raises ConfigError for a text without
    a token, and for messages that the template refuses."""
    if texts and isinstance(texts[0], list) and not is_conversation(texts[0]):
        rows = encoder.encode_words(texts)
    else:
        plain = ((text,) if isinstance(text, str) else text for text in texts if not is_conversation(text))
        encoded = iter(encoder.encode(list(plain)))
        rows = [
            _encode_conversation(encoder, chat, text, place) if is_conversation(text) else next(encoded)
            for text, place in zip(texts, places, strict=True)
        ]
    for place, row in zip(places, rows, strict=True):
        if not row.ids:
            raise ConfigError(f"{place} has no token (another text)")
    return rows


def _encode_conversation(encoder: RowEncoder, chat: ChatTemplate | None, messages: Any, place: str) -> EncodedRow:
    from zoo.data.rowcode import EncodedRow

    assert chat is not None
    tokenizer: Tokenizer = encoder.tokenizer
    try:
        ids = chat.encode(tokenizer, messages, add_generation_prompt=False)
    except ConfigError as error:
        raise ConfigError(*(f"{place}: {fault}" for fault in error.faults)) from error
    return EncodedRow(ids[: encoder.limit], [0] * min(len(ids), encoder.limit), [], len(ids))


def compute_logits(model: Model, rows: Sequence[EncodedRow]) -> list[Tensor]:
    """Compute the logits of rows, float32 on the CPU: [C] each, or [T, C] for a head that reads tokens."""
    tower = next(iter(model.spec.towers().values()))
    device, typed = next(model.parameters()).device, tower.takes_types
    ids, mask = pad_rows([row.ids for row in rows], tower.position.skip_id or 0, device)
    types = {"token_type_ids": pad_rows([row.types for row in rows], 0, device)[0]} if typed else {}
    with torch.inference_mode():
        logits = model(ids, mask, **types).logits.float().cpu()
    return list(logits)


def read_result(head: Any, row: EncodedRow, logits: Tensor, activation: Activation, every: bool) -> dict[str, Any]:
    """Make the result of a row from its logits. With activation none, a class has its `logit` in place of a
    probability."""
    if not hasattr(head, "labels"):
        numbers = logits.sigmoid() if activation == "sigmoid" else logits
        return {"predicted": numbers.item() if head.n_logits == 1 else numbers.tolist()}
    if not head.reads_rows:
        tags = logits.argmax(-1).tolist()
        return {"predicted": [None if place is None else head.labels[tags[place]] for place in row.places]}
    best = head.labels[int(logits.argmax())]
    if activation == "none":
        whole = {"logits": dict(zip(head.labels, logits.tolist(), strict=True))} if every else {}
        return {"predicted": best, "logit": logits.max().item(), **whole}
    probs = (logits.sigmoid() if activation == "sigmoid" else logits.softmax(-1)).tolist()
    by_name = dict(zip(head.labels, probs, strict=True))
    whole = {"probabilities": by_name} if every else {}
    if activation == "sigmoid":
        return {"predicted": [name for name, chance in by_name.items() if chance > 0.5], **whole}
    return {"predicted": best, "probability": by_name[best], **whole}
