"""Whether a folder we wrote gives our own logits in transformers, asked in a fresh process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointError, ConfigError
from zoo.lazy import torch

CLOSE = {"float32": 5e-5, "float64": 5e-5, "float16": 5e-2, "bfloat16": 2e-1}
"""Largest difference of two logits that rounding explains, by dtype, relative to the largest logit where that is above
1."""

PROBE = 17
"""Tokens of the row that is compared: more than a window or a chunk of a tiny model holds, and odd."""


def require() -> None:
    """Raises ConfigError where transformers is not installed: to be asked before anything is written."""
    if find_spec("transformers") is None:
        raise ConfigError("verify: transformers is not installed (pip install 'transformer-zoo[hf]', or --no-verify)")


def verify(model: Any, folder: Path) -> float:
    """The largest difference between the model's logits (hidden states, without a head) and transformers' for a folder.

    Raises CheckpointError when it is more than rounding explains, and ConfigError where transformers is not installed.
    """
    from safetensors.torch import load_file, save_file

    require()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.spec.vocab_size, (1, min(PROBE, model.spec.max_seq_len)), generator=generator)
    more = {"decoder_input_ids": ids.flip(1)[:, :7].contiguous()} if model.spec.kind == "encoder_decoder" else {}
    with torch.inference_mode(), tempfile.TemporaryDirectory() as place:
        save_file({"input_ids": ids, **more}, Path(place) / "asked.safetensors")
        run = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("reference.py")), str(folder), place],
            capture_output=True,
            text=True,
        )
        if run.returncode:
            last = (run.stderr.strip().splitlines() or ["nothing said"])[-1]
            raise CheckpointError(f"{folder}: transformers does not read it, it says: {last}")
        theirs = load_file(Path(place) / "given.safetensors")["given"]
        device = next(model.parameters()).device
        out = model(ids.to(device), **{name: each.to(device) for name, each in more.items()})
        ours = (out.hidden if out.logits is None else out.logits).float().cpu()
    largest = float((ours - theirs).abs().max())
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if not largest <= CLOSE[dtype] * max(1.0, float(theirs.abs().max())):
        raise CheckpointError(f"{folder}: transformers' logits differ from the model's by {largest:.2g} in {dtype}")
    return largest
