"""Run a folder's model in transformers: `python reference.py FOLDER PLACE`. Imports nothing of zoo."""

import json
import sys
from pathlib import Path


def main(folder: Path, place: Path) -> None:
    """Read the inputs at PLACE/asked.safetensors, write logits or hidden states to PLACE/given.safetensors."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    known = config.get("model_type") in transformers.CONFIG_MAPPING  # a class may serve several: Llama's reads EXAONE
    stated = {"config": transformers.AutoConfig.from_pretrained(folder)} if known else {}
    made = getattr(transformers, config["architectures"][0])
    model = made.from_pretrained(folder, dtype=torch.float32, **stated).eval()
    with torch.inference_mode():
        given = model(**load_file(place / "asked.safetensors"))[0]
    save_file({"given": given.contiguous()}, place / "given.safetensors")


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: its module names would hide others
    main(Path(sys.argv[1]), Path(sys.argv[2]))
