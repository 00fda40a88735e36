"""Compare a GGUF file with llama.cpp's own reading of it, where its Python package (llama-cpp-python) is installed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from zoo.checkpoint.llama_cpp_form import find_row_head
from zoo.checkpoint.stored import StoredModel
from zoo.errors import CheckpointError
from zoo.lazy import Tensor, torch
from zoo.model.encoder_decoder import EncoderDecoder
from zoo.untrusted.printable import shorten

PROGRAM = """
import sys, llama_cpp, numpy
kind, file, out, *ids = sys.argv[1:]
ids = [int(each) for each in ids]
room = {"n_ctx": 64, "n_batch": 64, "n_threads": 1, "type_k": 0, "type_v": 0, "flash_attn": False, "logits_all": True}
embedding, pooling = kind in ("encoder", "rows"), 4 if kind == "rows" else 0
model = llama_cpp.Llama(file, verbose=False, embedding=embedding, pooling_type=pooling, **room)

def run(how, ids):
    held = (llama_cpp.llama_token * len(ids))(*ids)  # the batch points into it
    assert how(model.ctx, llama_cpp.llama_batch_get_one(held, len(ids))) == 0, "it does not run these tokens"

def read(how, rows, width):
    return numpy.ctypeslib.as_array(how(model.ctx), (rows * width,)).reshape(rows, width).copy()

if kind == "decoder":
    model.eval(ids)
    found = model.scores[: len(ids)]
elif kind == "rows":
    run(llama_cpp.llama_decode, ids)
    count = llama_cpp.llama_model_n_cls_out(model.model)
    found = read(lambda context: llama_cpp.llama_get_embeddings_seq(context, 0), 1, count)
elif kind == "encoder":
    run(llama_cpp.llama_encode, ids)
    found = read(llama_cpp.llama_get_embeddings, len(ids), model.n_embd())
else:
    start, ids, found = ids[0], ids[1:], []
    run(llama_cpp.llama_encode, ids)
    for each in (start, *ids):
        run(llama_cpp.llama_decode, [each])
        found.append(read(llama_cpp.llama_get_logits, 1, model.n_vocab())[0])
numpy.save(out, numpy.array(found))
"""
"""A program for a fresh process, because a failure in llama.cpp may end the process. Keys and values are cached in
float32. A decoder reads all tokens at once. An encoder-decoder's target is `start` and the source's ids, read token by
token."""

PROBE = 33
"""Number of tokens that are compared."""

CLOSE = 0.1
"""Largest difference of two values, relative to the largest value. llama.cpp reads GELU from a 16-bit table, and with
quantised weights rounds activations to 8 bits; a wrong weight or position changes logits by more than half."""


def compare_with_llama_cpp(model: StoredModel, file: Path, dense: Iterable[Tensor] = ()) -> str:
    """Compare the logits of a GGUF file, read here in float32, with llama.cpp's. For an encoder without a head, hidden
    states are compared, after the matrices `dense`. Returns the result in words. Raises CheckpointError if llama.cpp
    does not load the file, or if values differ."""
    if find_spec("llama_cpp") is None:
        return "not read by llama.cpp (pip install llama-cpp-python)"
    spec = model.spec
    kind = "rows" if find_row_head(spec) else spec.kind
    count = min(PROBE, spec.max_seq_len)
    ids = torch.arange(count) * 7 % spec.vocab_size
    start = torch.tensor([spec.start_id]) if isinstance(spec, EncoderDecoder) else ids[:0]
    theirs = _run_llama_cpp(file, kind, torch.cat((start, ids)).tolist())
    name, ours = _compute(model, kind, ids[None], start[None])
    for matrix in dense:
        ours = ours @ matrix.float().T
    largest, size = float((ours - theirs[:, : ours.shape[1]]).abs().max()), float(ours.abs().max())
    if not largest <= CLOSE * size:
        raise CheckpointError(f"{file}: llama.cpp gives other {name}, with a difference of {largest:.2g} of {size:.2g}")
    return f"llama.cpp gives the {name} of {count} tokens, largest difference {largest:.1e} (largest value {size:.2g})"


def _compute(model: StoredModel, kind: str, ids: Tensor, start: Tensor) -> tuple[str, Tensor]:
    """Compute in torch the values that llama.cpp gives for the tokens [1, T]: their name (logits, …) and the values."""
    more = {"decoder_input_ids": torch.cat((start, ids), 1)} if start.numel() else {}
    with torch.inference_mode():
        out = model.build(torch.device("cpu"))(ids, **more)
    if kind == "encoder":
        return "hidden states", out.hidden[0].float()
    logits = out.logits.float()
    if kind != "rows":
        return "logits", logits[0]
    is_causal = model.spec.kind == "decoder"  # llama.cpp then takes the softmax
    return ("probabilities", logits.softmax(-1)) if is_causal else ("row's logits", logits)


def _run_llama_cpp(file: Path, kind: str, ids: Sequence[int]) -> Tensor:
    """Run llama.cpp in a fresh process. Returns logits [T, V], logits [1, C] of a whole row, or an encoder's hidden
    states [T, D]. Raises CheckpointError if llama.cpp fails."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.npy"
        line = [sys.executable, "-c", PROGRAM, kind, str(file), str(out), *map(str, ids)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            last = shorten((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
            raise CheckpointError(f"{file}: llama.cpp does not read it, found {last} (a bug here)")
        return torch.from_numpy(np.load(out))
