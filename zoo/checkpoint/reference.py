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
    if config["architectures"][0].endswith("ForMultipleChoice"):  # a row is the one choice of its question
        asked = {name: tensor[:, None] for name, tensor in asked.items()}
    with torch.inference_mode():
        out = model(**asked)
    spans = "start_logits" in out
    given = torch.stack((out.start_logits, out.end_logits), -1) if spans else out[0]
    save_file({"given": given.contiguous()}, place / "given.safetensors")


def _open_model(folder: Path, config: dict[str, Any], dtype: Any) -> Any:
    """Open the folder's model. transformers has no class of the name where another family's serves the type of config:
    Llama's reads EXAONE."""
    import transformers

    name = config["architectures"][0]
    auto = transformers.AutoModel if name.endswith("Model") else transformers.AutoModelForCausalLM
    model = getattr(transformers, name, auto).from_pretrained(folder, dtype=dtype)
    restore_buffers(model, folder)
    return model


def restore_buffers(model: Any, folder: Path) -> None:
    """Give a model's buffers the values that the folder's files have. transformers 5.24 writes initial values over some
    that it has read: the last of ZAYA1's balancing biases is -1 then, whatever the file says."""
    from safetensors import safe_open

    buffers = dict(model.named_buffers())
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            for name in buffers.keys() & stored.keys():
                buffers[name].copy_(stored.get_tensor(name))


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: its module names would hide others
    main(Path(sys.argv[1]), Path(sys.argv[2]))
