"""Compare a GGUF file with llama.cpp's own reading of it, where its Python package (llama-cpp-python) is installed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from zoo.checkpoint.stored import StoredModel
from zoo.errors import CheckpointError
from zoo.lazy import torch
from zoo.untrusted.printable import shorten

PROGRAM = """
import sys, llama_cpp, numpy
file, out, *ids = sys.argv[1:]
room = {"n_ctx": 64, "n_batch": 64, "n_threads": 1, "type_k": 0, "type_v": 0, "flash_attn": False, "logits_all": True}
model = llama_cpp.Llama(file, verbose=False, **room)
model.eval([int(each) for each in ids])
numpy.save(out, model.scores[: len(ids)])
"""
"""Runs in a fresh process: what fails in llama.cpp may end its process. Keys and values are cached in float32."""

PROBE = 33
"""Number of tokens that are compared."""

CLOSE = 0.1
"""Largest difference of logits, relative to the largest logit. llama.cpp reads GELU from a table of 16 bits, and with
quantised weights rounds activations to 8; a wrong weight or a wrong position changes logits by more than half."""


def compare_with_llama_cpp(model: StoredModel, file: Path) -> str:
    """Compare the logits of a GGUF file, read here in float32, with llama.cpp's. Returns the result in words. Raises
    CheckpointError if llama.cpp does not load the file, or if its logits differ."""
    if find_spec("llama_cpp") is None:
        return "not read by llama.cpp (pip install llama-cpp-python)"
    count = min(PROBE, model.spec.max_seq_len)
    ids = torch.arange(count) * 7 % model.spec.vocab_size
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.npy"
        line = [sys.executable, "-c", PROGRAM, str(file), str(out), *map(str, ids.tolist())]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            last = shorten((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
            raise CheckpointError(f"{file}: llama.cpp does not read it, found {last} (a bug here)")
        import numpy as np

        theirs = torch.from_numpy(np.load(out))
    with torch.inference_mode():
        ours = model.build(torch.device("cpu"))(ids[None]).logits[0].float()
    largest, size = float((ours - theirs[:, : ours.shape[1]]).abs().max()), float(ours.abs().max())
    if not largest <= CLOSE * size:
        raise CheckpointError(f"{file}: llama.cpp gives other logits, with a difference of {largest:.2g} of {size:.2g}")
    return f"llama.cpp gives the logits of {count} tokens, largest difference {largest:.1e} (largest logit {size:.1f})"
