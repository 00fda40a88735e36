"""Run a folder's model in transformers: `python reference.py FOLDER PLACE`. Imports nothing of zoo."""

import json
import sys
from pathlib import Path
from typing import Any


def main(folder: Path, place: Path) -> None:
    """Read the inputs at PLACE/asked.safetensors, write logits or hidden states to PLACE/given.safetensors."""
    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = _open_model(folder, config, torch.float32).eval()
    asked = load_file(place / "asked.safetensors")
    if config["architectures"][0].endswith("ForMultipleChoice"):  # each row is a question with a single choice
        asked = {name: tensor[:, None] for name, tensor in asked.items()}
    with torch.inference_mode():
        out = model(**asked)
    spans = "start_logits" in out
    given = torch.stack((out.start_logits, out.end_logits), -1) if spans else out[0]
    save_file({"given": given.contiguous()}, place / "given.safetensors")


def _open_model(folder: Path, config: dict[str, Any], dtype: Any) -> Any:
    """Open the folder's model by its class, or by AutoModel if transformers has no such class (it reads EXAONE as
    Llama)."""
    import transformers

    name = config["architectures"][0]
    auto = transformers.AutoModel if name.endswith("Model") else transformers.AutoModelForCausalLM
    model = getattr(transformers, name, auto).from_pretrained(folder, dtype=dtype)
    restore_buffers(model, folder)
    return model


def restore_buffers(model: Any, folder: Path) -> None:
    """Set a model's buffers to the values in the folder's files. transformers 5.24 overwrites some by initial values
    after reading them: the last of ZAYA1's balancing biases becomes -1."""
    from safetensors import safe_open

    buffers = dict(model.named_buffers())
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            for name in buffers.keys() & stored.keys():
                buffers[name].copy_(stored.get_tensor(name))


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: its module names would hide others
    main(Path(sys.argv[1]), Path(sys.argv[2]))
