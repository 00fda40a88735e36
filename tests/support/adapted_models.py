"""Models with low-rank adapters, and the folders that they are for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import transformers

from zoo.checkpoint import adapter_files, store
from zoo.run.adapters import Adapters, attach_adapters
from zoo.training.start.lora import Lora

IDS = torch.randint(60, (2, 9), generator=torch.Generator().manual_seed(3))


def adapted(model, on: tuple[str, ...], rank: int = 3, dropout: float = 0.0):
    """The model with adapters on the products named, both matrices random."""
    paths = Lora(rank=rank, alpha=5.0, on=on).choose(model.spec)
    attach_adapters(model, Adapters(rank, 5.0, dropout, paths), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, each in model.named_parameters():
            if ".lora." in name:
                each.copy_(torch.randn(each.shape, generator=generator) * 0.2)
    return model.eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def over(base: Path, model, folder: Path, trained: tuple[str, ...] = (), tokenizer=None) -> Path:
    """Save an adapted model as a run over `base` does."""
    path, found = adapter_files.choose_base(base)
    model.adapters = replace(model.adapters, trained=trained, base=path, hash=found)
    return store.save_model(model, folder, tokenizer)


def save_llama(folder: Path, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{"vocab_size": 60, **LLAMA, **changes})
    transformers.AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    return folder


LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
