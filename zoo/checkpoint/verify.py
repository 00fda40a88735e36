"""Verify a written folder: transformers, in a fresh process, must give the model's own logits.

Both compute in float32, whatever the dtype of the stored weights: rounding to 16 bits would hide a wrong weight.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import CheckpointError, ConfigError
from zoo.families.described import CONFIG, read_config
from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

CLOSE = 5e-5
"""Largest difference of logits explained by float32 rounding in up to twelve layers, relative to the largest logit if
that is above 1. The tolerance grows with the square root of the number of layers."""

PROBE = 17
"""Number of tokens that are compared: odd, and more than a window or chunk of a tiny test model."""


def require_transformers() -> None:
    """Raise ConfigError unless transformers is installed. Called before anything is written."""
    if find_spec("transformers") is None:
        raise ConfigError("verify: transformers is not installed (pip install 'transformer-zoo[hf]', or --no-verify)")


def verify_folder(model: Any, folder: Path) -> float:
    """Compare the model's logits (hidden states if it has no head) with transformers' for a folder, in float32.

    Returns the largest difference. Raises CheckpointError if it is more than rounding explains, and ConfigError if
    transformers is not installed.
    """
    require_transformers()
    spec = model.spec
    generator = torch.Generator().manual_seed(0)
    inputs = {"input_ids": torch.randint(5, spec.vocab_size, (1, min(PROBE, spec.max_seq_len)), generator=generator)}
    if spec.kind == "encoder_decoder" and spec.decoder.head.reads_text:
        end = read_config(folder / CONFIG).get("eos_token_id", inputs["input_ids"][0, -1])
        inputs["input_ids"][:, -1] = end  # the class pools at the end-of-text token
    elif spec.kind == "encoder_decoder":
        inputs["decoder_input_ids"] = inputs["input_ids"].flip(1)[:, :7].contiguous()
    theirs = _run_transformers(folder, inputs)
    device = next(model.parameters()).device
    with torch.inference_mode(), computing_in_float32(model):
        out = model(**{name: ids.to(device) for name, ids in inputs.items()})
    ours = (out.hidden if out.logits is None else out.logits).float().cpu()
    if ours.numel() != theirs.numel():
        shapes = f"of shape {list(theirs.shape)}, the model's {list(ours.shape)}"
        raise CheckpointError(f"{folder}: transformers' logits are {shapes}")
    largest = float((ours - theirs.reshape(ours.shape)).abs().max())  # transformers drops a last dimension of size 1
    if not largest <= CLOSE * max(1.0, spec.n_layers / 12) ** 0.5 * max(1.0, float(theirs.abs().max())):
        raise CheckpointError(f"{folder}: transformers' logits differ from the model's by {largest:.2g}")
    return largest


def _run_transformers(folder: Path, inputs: dict[str, Tensor]) -> Tensor:
    """Run the folder's model in transformers, in a fresh process. Raises CheckpointError with the last line of that
    process's errors."""
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as place:
        save_file(inputs, Path(place) / "asked.safetensors")
        run = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("reference.py")), str(folder), place],
            capture_output=True,
            text=True,
        )
        if run.returncode:
            last = (run.stderr.strip().splitlines() or ["nothing said"])[-1]
            raise CheckpointError(f"{folder}: transformers cannot read it, it says: {last}")
        return load_file(Path(place) / "given.safetensors")["given"]


@contextmanager
def computing_in_float32(model: Any) -> Iterator[None]:
    """Cast a model's 16-bit parameters to float32 inside the block, and back to their own dtypes and values after it.

    Float64 is kept. Casts are made outside inference mode, in which parameters would become untrainable.
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
