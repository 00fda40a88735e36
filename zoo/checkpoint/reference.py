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
    model = getattr(transformers, config["architectures"][0]).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        given = model(**load_file(place / "asked.safetensors"))[0]
    save_file({"given": given.contiguous()}, place / "given.safetensors")


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: its module names would hide others
    main(Path(sys.argv[1]), Path(sys.argv[2]))
