"""Verify a written folder: transformers' tokenizer, model and pipeline, loaded from it in a fresh process, must give
the model's own ids and logits.

Both compute in float32, whatever the dtype of the stored weights: rounding to 16 bits would hide a wrong weight.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from zoo.errors import CheckpointError, ConfigError
from zoo.families.described import CONFIG, read_config
from zoo.lazy import Tensor, torch
from zoo.untrusted.printable import shorten

CLOSE = 5e-5
"""Largest difference of logits explained by float32 rounding in up to twelve layers, relative to the largest logit if
that is above 1. The tolerance grows with the square root of the number of layers."""

PROBE = 17
"""Number of tokens that are compared: odd, and more than a window or chunk of a tiny test model."""


class Reading(NamedTuple):
    """A text that transformers is asked to read: its description in words, its data for `reference.py` (`texts` with a
    `limit`, `messages`, or a `text` for the pipeline of a `task`), and the expected ids of each row."""

    what: str
    asked: dict[str, Any]
    rows: list[list[int]]


class Agreement(NamedTuple):
    """What was compared with transformers, in words, and the largest difference of logits."""

    largest: float
    compared: list[str]
    without: str

    def describe(self) -> str:
        """Describe the comparison in one line."""
        first, *texts = self.compared
        text = f"no text, as {self.without}" if self.without else f"ids and logits of {'; '.join(texts)}"
        return f"transformers gives the same logits, largest difference {self.largest:.1e}: {first}; {text}"


def require_transformers() -> None:
    """Raise ConfigError unless transformers is installed. Called before anything is written."""
    if find_spec("transformers") is None:
        raise ConfigError("verify: transformers is not installed (pip install 'transformer-zoo[hf]', or --no-verify)")


REFERENCE = Path(__file__).with_name("reference.py")
"""The program that runs a folder's model in transformers."""


def verify_folder(
    model: Any,
    folder: Path,
    readings: Sequence[Reading] = (),
    without: str = "no tokenizer was given",
    program: Path = REFERENCE,
) -> Agreement:
    """Compare a model with what transformers reads from a folder, in float32. The logits of random tokens are compared
    (hidden states if the model has no head), then ids and logits of the `readings`; `without` says why there are no
    readings.

    Raises CheckpointError if ids differ, or if logits differ by more than rounding explains, and ConfigError if
    transformers is not installed.
    """
    require_transformers()
    spec = model.spec
    inputs = make_inputs(spec, folder)
    beside = {name: each for name, each in inputs.items() if name != "input_ids"}
    if spec.kind == "encoder_decoder" and spec.decoder.head.reads_text:
        readings, without = (), "its head reads the last token of a text"
    given, ids = _run_transformers(folder, inputs, [each.asked for each in readings], program)
    with torch.inference_mode(), computing_in_float32(model):
        largest = measure(compute(model, inputs), given["given"], spec, folder, "random tokens")
        compared = [f"{inputs['input_ids'].numel()} random tokens"]
        for number, (reading, (found, how)) in enumerate(zip(readings, ids, strict=True)):
            if found != reading.rows:
                raise CheckpointError(f"{folder}: transformers reads {reading.what} otherwise, {_show(found, reading)}")
            for row, tokens in enumerate(reading.rows):
                ours = compute(model, {"input_ids": torch.tensor([tokens]), **beside})
                largest = max(largest, measure(ours, given[f"{number}.{row}"], spec, folder, reading.what))
            compared.append(reading.what + how)
    return Agreement(largest, compared, without)


def make_inputs(spec: Any, folder: Path) -> dict[str, Tensor]:
    """Make random inputs for a model."""
    generator = torch.Generator().manual_seed(0)
    inputs = {"input_ids": torch.randint(5, spec.vocab_size, (1, min(PROBE, spec.max_seq_len)), generator=generator)}
    if spec.kind == "encoder_decoder" and spec.decoder.head.reads_text:
        end = read_config(folder / CONFIG).get("eos_token_id", inputs["input_ids"][0, -1])
        inputs["input_ids"][:, -1] = end  # the class pools at the end-of-text token
    elif spec.kind == "encoder_decoder":
        inputs["decoder_input_ids"] = inputs["input_ids"].flip(1)[:, :7].contiguous()
    return inputs


def compute(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Compute the model's logits, or its hidden states if it has no head."""
    device = next(model.parameters()).device
    out = model(**{name: ids.to(device) for name, ids in inputs.items()})
    return (out.hidden if out.logits is None else out.logits).float().cpu()


def measure(ours: Tensor, theirs: Tensor, spec: Any, folder: Path, what: str) -> float:
    """Return the largest difference of logits. Raises CheckpointError if it is more than rounding explains. For a
    pipeline's text, transformers may give only the logits of the last token."""
    if what.startswith("the pipeline") and theirs.ndim == ours.ndim == 3:
        ours = ours[:, -theirs.shape[1] :]
    if ours.numel() != theirs.numel():
        shapes = f"of shape {list(theirs.shape)}, the model's {list(ours.shape)}"
        raise CheckpointError(f"{folder}: transformers' logits of {what} are {shapes}")
    largest = float((ours - theirs.reshape(ours.shape)).abs().max())  # transformers drops a last dimension of size 1
    if not largest <= CLOSE * max(1.0, spec.n_layers / 12) ** 0.5 * max(1.0, float(theirs.abs().max())):
        raise CheckpointError(f"{folder}: transformers' logits differ from the model's by {largest:.2g}, of {what}")
    return largest


def _show(found: list[list[int]], reading: Reading) -> str:
    """Show the first row that differs."""
    theirs, ours = next(pair for pair in zip(found, reading.rows, strict=True) if pair[0] != pair[1])
    return f"as {shorten(str(theirs), 60)}, the model's folder gives {shorten(str(ours), 60)}"


def _run_transformers(
    folder: Path, inputs: dict[str, Tensor], asked: list[dict[str, Any]], program: Path
) -> tuple[dict[str, Tensor], list[tuple[list[list[int]], str]]]:
    """Run the folder's tokenizer, model and pipeline in transformers, in a fresh process. Returns logits by name, and
    for each reading its ids and how texts were batched. Raises CheckpointError with the process' last error line."""
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as place:
        save_file(inputs, Path(place) / "asked.safetensors")
        (Path(place) / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        run = subprocess.run(
            [sys.executable, str(program), str(folder), place],
            capture_output=True,
            text=True,
        )
        if run.returncode:
            last = (run.stderr.strip().splitlines() or ["nothing said"])[-1]
            raise CheckpointError(f"{folder}: transformers cannot read it, it says: {last}")
        ids = json.loads((Path(place) / "given.json").read_text(encoding="utf-8"))
        return load_file(Path(place) / "given.safetensors"), ids


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
