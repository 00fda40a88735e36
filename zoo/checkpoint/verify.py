"""Whether a folder we wrote gives our own logits in transformers, asked in a fresh process.

Both compute in float32, whatever the weights are stored in: the rounding of 16 bits would hide a wrong weight.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointError, ConfigError
from zoo.lazy import torch

CLOSE = 5e-5
"""Largest difference of two logits that float32's rounding explains in a dozen layers, relative to the largest logit
where that is above 1. Of more layers it grows with their root."""

PROBE = 17
"""Tokens of the row that is compared: more than a window or a chunk of a tiny model holds, and odd."""


def require() -> None:
    """Raises ConfigError where transformers is not installed: to be asked before anything is written."""
    if find_spec("transformers") is None:
        raise ConfigError("verify: transformers is not installed (pip install 'transformer-zoo[hf]', or --no-verify)")


def verify(model: Any, folder: Path) -> float:
    """The largest difference between the model's logits (hidden states, without a head) and transformers' for a folder,
    both computed in float32.

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
        with computing_in_float32(model):
            out = model(ids.to(device), **{name: each.to(device) for name, each in more.items()})
        ours = (out.hidden if out.logits is None else out.logits).float().cpu()
    largest = float((ours - theirs).abs().max())
    if not largest <= CLOSE * max(1.0, model.spec.n_layers / 12) ** 0.5 * max(1.0, float(theirs.abs().max())):
        raise CheckpointError(f"{folder}: transformers' logits differ from the model's by {largest:.2g}")
    return largest


@contextmanager
def computing_in_float32(model: Any) -> Iterator[None]:
    """Let a model in 16 bits compute in float32 inside the block; afterwards it has its own dtype and values again.

    Float64 stays: float32 would round it. The casts are made outside inference mode, or the model could not be trained
    any more.
    """
    narrow = {each: each.dtype for each in model.parameters() if each.dtype in (torch.bfloat16, torch.float16)}
    try:
        _cast(dict.fromkeys(narrow, torch.float32))
        yield
    finally:
        _cast(narrow)


def _cast(dtypes: dict[Any, torch.dtype]) -> None:
    with torch.inference_mode(False):
        for parameter, dtype in dtypes.items():
            parameter.data = parameter.data.to(dtype)
