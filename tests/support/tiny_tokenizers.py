"""Tokenizers of each manner, made on the spot."""

from __future__ import annotations

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SAMPLE = "naïve café — 東京 🙂👩‍👩‍👧 def f(x):\n    return 'ﬁn'\n" * 3


def byte_level() -> Tokenizer:
    """A tokenizer of bytes and a few merges, most of which split this text's characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([SAMPLE], trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """A tokenizer of SentencePiece's manner (Llama 2): spaces as '▁', unknown characters as single bytes."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefhinrstuvx", "▁de", "▁f", "▁return"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


LETTERS = [*"aAbe nd\n\t.,'0", *"éßñ", *"東京語", *"🙂👩\u200d\ufe0f", *"\u0301\u05d0\u0e01", "ﬁ", "\U0010ffff", "  "]


def unigram() -> Tokenizer:
    """A tokenizer of SentencePiece's other manner (T5, Gemma's byte fallback), trained on the sample."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    letters = sorted({letter for part in LETTERS for letter in part if not letter.isspace()})
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.UnigramTrainer(
        vocab_size=400, unk_token="<unk>", special_tokens=special, initial_alphabet=letters[::2], show_progress=False
    )
    tokenizer.train_from_iterator([SAMPLE, "and the end, and the bed: a band " * 5], trainer)
    vocabulary = [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    tokenizer.model = models.Unigram(vocabulary, unk_id=0, byte_fallback=True)
    return tokenizer
