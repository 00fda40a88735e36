# B rows, N tokens, V vocabulary
"""Write a model as a program of tensors with its tokenizer beside it, run the written file, and compare."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.beside import BESIDE, copy_beside
from zoo.checkpoint.hf.writing import read_special_ids
from zoo.checkpoint.inverse import find_config
from zoo.checkpoint.store import write_architecture
from zoo.checkpoint.tensor_files import refuse_to_replace
from zoo.checkpoint.verify_folder import CLOSE
from zoo.disk import replace_folder
from zoo.errors import CheckpointError, FitsNoFamily
from zoo.families.described import CONFIG, to_jsonable
from zoo.lazy import torch
from zoo.runs import ARCHITECTURE
from zoo.untrusted.printable import shorten

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.checkpoint.stored import StoredModel
    from zoo.run.traced import Embed, TracedModel

    Named = Mapping[str, Tensor]

NAME = "model"
FILE = f"{NAME}.pt2"

STEPS = 3
"""Tokens that are decoded one by one after a prompt, when a file is compared."""

LENGTHS = 9, 17
"""Tokens of the rows that are compared."""

LONGEST = 512
"""Largest window that the longer rows are made to exceed."""

ROUGH = 8
"""As CLOSE for 16-bit weights, in steps of their dtype, because other kernels round at other places. Tiny models
differed by 1.3 steps (fp16) and 1.9 (bf16)."""


def save(
    model: StoredModel,
    out: Path,
    folder: Path,
    form: str,
    *,
    embed: Embed | None = None,
    force: bool = False,
    verify: bool = True,
) -> str:
    """Write a folder with a program (`form` is onnx or export), its tokenizer's files and a config. Returns what was
    compared, in words.

    `embed` makes a sentence's vector of hidden states (`zoo.run.traced.TracedModel`). With `verify` the folder appears
    when the program, read back, gives the model's values. Raises ConfigError for a model that is no program of tensors,
    and CheckpointError if values differ or `out` has other files.
    """
    from zoo.run.traced import TracedModel

    if form == "onnx":
        from zoo.checkpoint import onnx_export

        onnx_export.check(model.dtype)
        write, open_program = onnx_export.write, onnx_export.open_program
    else:
        write, open_program = write_export, open_export
    names = (f"{NAME}.*", CONFIG, ARCHITECTURE, *BESIDE)
    refuse_to_replace(out, "an exported model", names, source=folder, force=force)
    built: Any = model.refuse_nonfinite().build(torch.device("cpu"))
    traced = TracedModel(built, embed).eval()
    with replace_folder(out) as draft:
        write(traced, traced.record(), draft)
        _describe(model, draft, folder)
        reader = "onnxruntime" if form == "onnx" else "torch"
        return f"{reader} gives {compare(traced, open_program(traced, draft))}" if verify else ""


def _describe(model: StoredModel, draft: Path, folder: Path) -> None:
    """Write our description of the model, the config of a published family if one fits, and what travels with it."""
    write_architecture(model.spec, draft)
    with suppress(FitsNoFamily):
        config = {**read_special_ids(folder, model.spec.vocab_size), **find_config(model.spec, model.source)[0]}
        text = json.dumps(to_jsonable(config), indent=2, sort_keys=True)
        (draft / CONFIG).write_text(text + "\n", encoding="utf-8")
    copy_beside(folder, draft)


# ---------------------------------------------------------------- torch.export


def write_export(traced: TracedModel, program: Any, folder: Path) -> None:
    """Write a recorded program as torch.export does."""
    torch.export.save(program, folder / FILE)


def open_export(traced: TracedModel, folder: Path) -> Callable[[Named], Named]:
    """Open a written program. Its function raises CheckpointError for inputs that the program refuses."""
    run = torch.export.load(folder / FILE).module()

    def call(given: Named) -> Named:
        past = {each.before: given[each.before] for each in traced.held}
        others = {name: each for name, each in given.items() if name not in past}
        try:
            return run(**others, **({"past": past} if past else {}))
        except (AssertionError, RuntimeError) as error:  # a guard of torch's
            raise CheckpointError(f"{folder / FILE}: refuses an input, {shorten(str(error), 200)}") from error

    return call


# ---------------------------------------------------------------- compare


def compare(traced: TracedModel, run: Callable[[Named], Named]) -> str:
    """Run a program, and compare with the model: rows of several lengths with padding before them, and of a decoder a
    prompt and then token by token. Returns what was compared. Raises CheckpointError if values differ."""
    rows, largest, top, close = [], 0.0, 1.0, _choose_bound(traced)
    with torch.inference_mode():
        for batch, tokens in zip((1, 3), _choose_lengths(traced), strict=True):
            rows.append(f"{batch} × {tokens}")
            for name, ours, theirs in _list_pairs(traced, run, batch, tokens):
                error, top = float((ours.float() - theirs.float()).abs().max()), max(top, float(ours.abs().max()))
                if not error <= close * top:
                    found = f"differs by {error:.2g} of {top:.2g} in rows of {tokens} tokens"
                    raise CheckpointError(f"{name}: of the program {found} (a bug here, or in what writes it)")
                largest = max(largest, error)
    steps = f"a prompt and {STEPS} cached steps each" if traced.held else "padding after the shorter"
    how = "cached steps" if traced.one_by_one else steps
    found = f"the model's values, largest difference {largest:.1e} (largest value {top:.1f})"
    return f"{found}: rows of {' and '.join(rows)} tokens, {how}"


def _choose_bound(traced: TracedModel) -> float:
    """Choose the largest difference of two values that rounding explains, relative to the largest value."""
    dtype = next(traced.model.parameters()).dtype
    close = CLOSE if dtype.itemsize > 2 else ROUGH * torch.finfo(dtype).eps
    return close * max(1.0, traced.tower.n_layers / 12) ** 0.5


def _choose_lengths(traced: TracedModel) -> list[int]:
    """Choose two lengths; the longer one is beyond the windows, if these are short."""
    sights = [each.attention.sight for each in traced.tower.blocks.values()]
    windows = [each for sight in sights for each in (sight.window, sight.chunk) if each and each <= LONGEST]
    wanted = LENGTHS[0], max([LENGTHS[1], *(each + STEPS + 2 for each in windows)])
    return [min(each, traced.tower.max_seq_len) for each in wanted]


def _list_pairs(
    traced: TracedModel, run: Callable[[Named], Named], batch: int, tokens: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, the model's values and the program's, of each row. Row b has b tokens of padding: before its own,
    where there is a cache, else after them."""
    given = traced.make_inputs(batch, tokens)
    padding, columns = torch.arange(batch)[:, None], torch.arange(tokens)[None]
    real = columns >= padding if traced.held else columns < tokens - padding
    given["attention_mask"] = real.long()
    found = _decode(traced, run, given) if traced.held else run(given)
    for row, own in enumerate(real):
        read = {name: each[row : row + 1, own] for name, each in given.items() if name.endswith("_ids")}
        ours = traced.name_results(traced.model(**read), own[None, own])
        for name, theirs in found.items():
            theirs = theirs[row : row + 1]
            yield name, ours[name], theirs[:, own] if theirs.ndim == 3 else theirs


def _decode(traced: TracedModel, run: Callable[[Named], Named], given: Named) -> Named:
    """Run a prompt, then token by token: logits [B, N, V]."""
    ids, mask = given["input_ids"], given["attention_mask"]
    tokens = ids.shape[1]
    stops = range(1, tokens + 1) if traced.one_by_one else range(tokens - STEPS, tokens + 1)
    past: dict[str, Tensor] = traced.make_inputs(len(ids), 0)["past"]
    logits, start = [], 0
    for stop in stops:
        found = run({"input_ids": ids[:, start:stop], "attention_mask": mask[:, :stop], **past})
        past = {each.before: found[each.after] for each in traced.held}
        logits.append(found["logits"])
        start = stop
    return {"logits": torch.cat(logits, 1)}
