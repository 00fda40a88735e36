"""Make a tokenizer.json from the metadata of a GGUF file: byte-level BPE, SentencePiece's BPE or unigrams, or
WordPiece."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.tokenizer_file import check_tokenizer
from zoo.errors import CheckpointError, short
from zoo.families.gguf import GGUFFile, read_catalogue
from zoo.untrusted.printable import quote, shorten

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's numbers for the types of tokens."""

MOST_CUTS = 8 << 20
"""Maximum number of characters in all tokens together: `find_merges` tries to split a token after each character. A
large vocabulary has 2 million."""

SPACE = "\u2581"
SPECIAL = ("bos_token", "eos_token", "unknown_token", "padding_token", "cls_token", "seperator_token", "mask_token")


def read_vocabulary(found: GGUFFile) -> dict[str, Any]:
    """Read the entries `tokenizer.ggml.*` of a file's metadata, by the last part of their names."""
    start = "tokenizer.ggml."
    return {name.removeprefix(start): each for name, each in found.metadata.items() if name.startswith(start)}


def make_tokenizer(found: GGUFFile) -> Tokenizer:
    """Make the tokenizer of a GGUF file that was read with `texts=True`. Raises CheckpointError for a missing,
    malformed or unsupported vocabulary."""
    vocabulary = read_vocabulary(found)
    kind = vocabulary.get("model")
    if kind not in MAKERS:
        raise CheckpointError(
            f"{found.file}: tokenizer.ggml.model: {quote(kind)} is not read (one of: {', '.join(MAKERS)})"
        )
    if "tokens" not in vocabulary:
        raise CheckpointError(f"{found.file}: tokenizer.ggml.tokens: is missing (the vocabulary)")
    try:
        made = MAKERS[kind](found, vocabulary)
    except Exception as error:
        if type(error) not in (Exception, KeyError, ValueError):  # `tokenizers` raises the bare class
            raise
        what = shorten(short(error))
        raise CheckpointError(f"{found.file}: tokenizer.ggml: is no vocabulary, found {what}") from error
    _add_special(made, vocabulary)
    if kind != "bert":
        _add_ends(made, vocabulary, {"add_bos_token": kind == "llama", "add_eos_token": kind == "t5"})
    return made


def describe_tokenizer(found: GGUFFile) -> dict[str, Any]:
    """Make the tokenizer_config.json: special tokens, and the chat template."""
    vocabulary = read_vocabulary(found)
    names = {"unknown_token": "unk_token", "padding_token": "pad_token", "seperator_token": "sep_token"}
    ids = {name: vocabulary.get(f"{name}_id") for name in SPECIAL}
    made = {names.get(name, name): vocabulary["tokens"][number] for name, number in ids.items() if number is not None}
    template = found.metadata.get("tokenizer.chat_template")
    made |= {"chat_template": template} if template else {}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **made}


# ---------------------------------------------------------------- kinds of vocabularies


def _make_byte_level(found: GGUFFile, vocabulary: Mapping[str, Any]) -> Tokenizer:
    """Make a byte-level BPE tokenizer (GPT-2): text is split by patterns, each piece's bytes are written as characters,
    and these are merged."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    row = _find_split(found, vocabulary.get("pre", "default"))
    merges = [tuple(each.split(" ", 1)) for each in vocabulary.get("merges", ())]
    tokens = {each: number for number, each in enumerate(vocabulary["tokens"])}
    made = Tokenizer(models.BPE(vocab=tokens, merges=merges, ignore_merges=row.get("whole", False)))
    own = row["patterns"][-1] == "gpt2"
    splits = [pre_tokenizers.Split(Regex(each), behavior="isolated") for each in row["patterns"] if each != "gpt2"]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own)  # pyright: ignore
    made.pre_tokenizer = pre_tokenizers.Sequence([*splits, last])  # pyright: ignore
    made.decoder = decoders.ByteLevel()  # pyright: ignore
    if row.get("normalizer") == "nfc":
        made.normalizer = normalizers.NFC()  # pyright: ignore
    return made


def _find_split(found: GGUFFile, name: str) -> Mapping[str, Any]:
    rows = read_catalogue()["splits"].values()
    row = next((each for each in rows if name in each["names"]), None)
    if row is None:
        known = ", ".join(each for row in rows for each in row["names"])
        raise CheckpointError(f"{found.file}: tokenizer.ggml.pre: {quote(name)} is not read (one of: {known})")
    return row


def _make_sentencepiece(found: GGUFFile, vocabulary: Mapping[str, Any]) -> Tokenizer:
    """Make SentencePiece's BPE tokenizer: a space is U+2581, and an unknown character becomes its bytes' tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens = vocabulary["tokens"]
    types = vocabulary.get("token_type") or [NORMAL] * len(tokens)
    if found.architecture.startswith("gemma"):  # Gemma's files write runs of spaces as spaces
        tokens = [SPACE * len(each) if each and not each.strip(" ") else each for each in tokens]
        scores = [-float(number) for number in range(len(tokens))]  # earlier tokens merge first
    else:
        scores = vocabulary["scores"]
    unknown = next((tokens[n] for n, kind in enumerate(types) if kind == UNKNOWN), None)
    places = {each: number for number, each in enumerate(tokens)}
    merges = vocabulary.get("merges")
    pairs = [tuple(each.split(" ", 1)) for each in merges] if merges else find_merges(tokens, types, scores)
    made = Tokenizer(models.BPE(vocab=places, merges=pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = vocabulary.get("add_space_prefix", True)
    made.normalizer = normalizers.Sequence(  # pyright: ignore
        [*([normalizers.Prepend(SPACE)] if prefix else []), normalizers.Replace(" ", SPACE)]
    )
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])  # pyright: ignore
    return made


def _make_unigram(found: GGUFFile, vocabulary: Mapping[str, Any]) -> Tokenizer:
    """Make SentencePiece's unigram tokenizer (Kudo, 2018). A text is split so that the sum of its tokens' scores is
    largest. Raises CheckpointError for a malformed table of characters."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    types = vocabulary["token_type"]
    pairs = list(zip(vocabulary["tokens"], vocabulary["scores"], strict=True))
    while types[len(pairs) - 1] == UNUSED:  # rows of the embedding without a token
        pairs.pop()
    made = Tokenizer(models.Unigram(pairs, unk_id=types.index(UNKNOWN), byte_fallback=BYTE in types))
    if table := bytes(vocabulary.get("precompiled_charsmap", ())):
        step = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}
        check_tokenizer({"model": {}, "normalizer": step}, str(found.file))
        made.normalizer = normalizers.Precompiled(table)  # pyright: ignore
    scheme = "always" if vocabulary.get("add_space_prefix", True) else "never"
    spaces = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme)
    steps = [pre_tokenizers.WhitespaceSplit()] if vocabulary.get("remove_extra_whitespaces") else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*steps, spaces])  # pyright: ignore
    made.decoder = decoders.Metaspace(SPACE, prepend_scheme=scheme)  # pyright: ignore
    return made


def find_merges(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Find the merges of a SentencePiece vocabulary, which stores a score for each token instead. Merges are sorted by
    the score of the merged token, best first.

    Each token of at least two characters gives one merge for each pair of tokens that concatenate to it. Raises
    ValueError for more than MOST_CUTS characters in all tokens together.
    """
    places = {each: number for number, each in enumerate(tokens)}
    if sum(map(len, tokens)) > MOST_CUTS:
        raise ValueError(f"tokens of more than {MOST_CUTS:,} characters together")
    found = []
    for number, token in enumerate(tokens):
        if types[number] not in (NORMAL, USER):
            continue
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        whole = sorted((places[left], places[right]) for left, right in pairs if left in places and right in places)
        found += [(scores[number], tokens[left], tokens[right]) for left, right in whole]
    found.sort(key=lambda each: (each[0], len(each[1]), len(each[2])), reverse=True)
    return [(left, right) for _, left, right in found]


def _make_wordpiece(found: GGUFFile, vocabulary: Mapping[str, Any]) -> Tokenizer:
    """Make BERT's WordPiece tokenizer (Devlin et al., 2018): greedy, the longest piece first. The file marks pieces
    that begin a word; the result marks continuations by `##`. Where the file does not say, the result lower-cases text
    unless a piece has a capital."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokens, types = vocabulary["tokens"], vocabulary["token_type"]
    spelt = [each if kind == CONTROL else _mark_piece(each) for each, kind in zip(tokens, types, strict=True)]
    lower = not any(each != each.lower() for each, kind in zip(tokens, types, strict=True) if kind == NORMAL)
    places = {each: number for number, each in enumerate(spelt)}
    made = Tokenizer(models.WordPiece(vocab=places, unk_token=spelt[vocabulary["unknown_token_id"]]))
    lower = vocabulary.get("normalizer.lowercase", lower)
    accents = vocabulary.get("normalizer.strip_accents")
    made.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=accents)  # pyright: ignore
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore
    made.decoder = decoders.WordPiece()  # pyright: ignore
    # llama.cpp's converter states no id for [CLS].
    named = {"cls": "[CLS]", "seperator": "[SEP]"}
    start, end = (spelt[vocabulary.get(f"{name}_token_id", places[word])] for name, word in named.items())
    marks = [(start, places[start]), (end, places[end])]
    made.post_processor = processors.TemplateProcessing(single=[start, "$A", end], special_tokens=marks)  # pyright: ignore
    return made


def _mark_piece(token: str) -> str:
    return token.removeprefix(SPACE) if token.startswith(SPACE) else f"##{token}"


def unmark_piece(token: str) -> str:
    """Spell a piece of a WordPiece vocabulary as GGUF files do: with U+2581 where it begins a word."""
    return token.removeprefix("##") if token.startswith("##") else f"{SPACE}{token}"


MAKERS = {
    "gpt2": _make_byte_level,
    "llama": _make_sentencepiece,
    "t5": _make_unigram,
    "bert": _make_wordpiece,
}
"""The function that makes a tokenizer, by llama.cpp's name of its kind."""


# ---------------------------------------------------------------- special tokens


def _add_special(made: Tokenizer, vocabulary: Mapping[str, Any]) -> None:
    """Add the unknown token, control tokens and user-defined ones, which are matched verbatim anywhere in a text."""
    from tokenizers import AddedToken

    types, known = vocabulary.get("token_type") or [], made.get_vocab()
    for kind, special in ((UNKNOWN, True), (CONTROL, True), (USER, False)):
        named = [each for each, own in zip(vocabulary["tokens"], types, strict=False) if own == kind and each in known]
        added = [AddedToken(each, special=special, normalized=False) for each in named]
        (made.add_special_tokens if special else made.add_tokens)(added)


def _add_ends(made: Tokenizer, vocabulary: Mapping[str, Any], defaults: Mapping[str, bool]) -> None:
    """Add the BOS and EOS tokens around a text, if the file says so; `defaults` apply where the file says nothing."""
    from tokenizers import processors

    asks = {**defaults, **vocabulary}
    parts, special = ["$A"], []
    for name in ("bos", "eos"):
        number = vocabulary.get(f"{name}_token_id")
        if asks[f"add_{name}_token"] and number is not None:
            token = vocabulary["tokens"][number]
            parts = [token, *parts] if name == "bos" else [*parts, token]
            special.append((token, number))
    if special:
        made.post_processor = processors.TemplateProcessing(single=parts, special_tokens=special)  # pyright: ignore
