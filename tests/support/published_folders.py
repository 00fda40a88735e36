"""Folders of tiny random models with tokenizers of each manner, as transformers saves them: BERT (WordPiece), RoBERTa
(byte-level BPE), Llama (byte-level BPE and a chat template), GPT-2 and XLNet (byte-level BPE) and T5 (Unigram)."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = ["the cat sat on the mat", "a dog ran in the park, and then it slept", "naïve café 42, in the sun"] * 3
LETTERS = "abcdefghijklmnopqrstuvwxyz,.42"
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def bert(path: Path, model: str = "BertForMaskedLM") -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{each}" for each in LETTERS), "the", "cat"]
    backend = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(words[:5])
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    transformers.BertTokenizerFast(tokenizer_object=backend, model_max_length=32).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    return save(path, model, transformers.BertConfig(vocab_size=len(words), max_position_embeddings=32, **SIZES))


def roberta(path: Path) -> Path:
    backend = byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    transformers.RobertaTokenizerFast(tokenizer_object=backend, model_max_length=32).save_pretrained(path)
    backend.model.save(str(path))  # vocab.json and merges.txt
    config = transformers.RobertaConfig(vocab_size=300, max_position_embeddings=34, **SIZES)
    return save(path, "RobertaForMaskedLM", config)


def llama(path: Path, model: str = "LlamaForCausalLM") -> Path:
    backend = byte_level(["<pad>", "<s>", "</s>", "<|end|>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=48, **named)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    ids = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0}
    config = transformers.LlamaConfig(vocab_size=300, num_key_value_heads=2, max_position_embeddings=64, **ids, **SIZES)
    return save(path, model, config)


def gpt2(path: Path) -> Path:
    backend = byte_level(["<|end|>"])
    named = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|end|>")
    transformers.GPT2TokenizerFast(tokenizer_object=backend, model_max_length=48, **named).save_pretrained(path)
    backend.model.save(str(path))
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    return save(path, "GPT2LMHeadModel", transformers.GPT2Config(vocab_size=300, n_positions=64, **sizes))


def xlnet(path: Path) -> Path:
    backend = byte_level(["<pad>", "<s>", "</s>"])
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=48, **named).save_pretrained(path)
    sizes = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "pad_token_id": 0}
    return save(
        path, "XLNetLMHeadModel", transformers.XLNetConfig(vocab_size=300, bos_token_id=1, eos_token_id=2, **sizes)
    )


def t5(path: Path) -> Path:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, unk_token="<unk>", special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    named = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, **named).save_pretrained(path)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return save(path, "T5ForConditionalGeneration", transformers.T5Config(vocab_size=64, **sizes))


def byte_level(special: list[str]) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    return backend


def save(path: Path, model: str, config: transformers.PretrainedConfig) -> Path:
    torch.manual_seed(0)
    getattr(transformers, model)(config).save_pretrained(path)
    return path
