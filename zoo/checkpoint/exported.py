# B rows, N tokens, V vocabulary
"""Export a model as a program (torch.export or ONNX) with its tokenizer, and compare the file with the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.beside import BESIDE, copy_beside
from zoo.checkpoint.hf.writing import read_special_ids
from zoo.checkpoint.inverse import find_config
from zoo.checkpoint.model_card import CARD, keep_card
from zoo.checkpoint.store import write_architecture
from zoo.checkpoint.tensor_files import refuse_to_replace
from zoo.checkpoint.verify_folder import CLOSE
from zoo.disk import replace_folder
from zoo.errors import CheckpointError, FitsNoFamily
from zoo.families.described import CONFIG, write_json
from zoo.lazy import Tensor, torch
from zoo.model.encoder_decoder import EncoderDecoder
from zoo.runs import ARCHITECTURE
from zoo.untrusted.printable import shorten

if TYPE_CHECKING:
    from zoo.checkpoint.stored import StoredModel
    from zoo.run.layer import Model
    from zoo.run.traced import Embed, TracedModel

    Named = Mapping[str, Tensor]

FILES = "*model.onnx", "*model.onnx.data", "*model.pt2"
"""Glob patterns of program files. A model has one program, an encoder-decoder three."""

STEPS = 3
"""Number of tokens that are decoded one by one after a prompt, when a file is compared."""

LENGTHS = 9, 17
"""Numbers of tokens in the rows that are compared."""

LONGEST = 512
"""Largest attention window, in tokens, that the longer rows are made to exceed."""

ROUGH = 8
"""Largest difference for 16-bit weights, relative to the largest value, in units of the dtype's eps; CLOSE is that of
float32. Other kernels round at other places: tiny models differed by 1.3 eps (fp16) and 1.9 (bf16)."""


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
    """Write a folder with a program (`form` is onnx or export; three programs for an encoder-decoder), its tokenizer's
    files and a config. Returns what was compared, in words.

    `embed` computes a sentence's vector from hidden states (`zoo.run.traced.TracedModel`). With `verify` the folder
    appears only if the program, read back, gives the model's values. Raises ConfigError for a model that cannot be
    recorded, and CheckpointError if values differ or `out` has other files. A README.md there is kept.
    """
    from zoo.run.traced import TracedModel
    from zoo.run.traced_pair import trace_pair

    if form == "onnx":
        from zoo.checkpoint import onnx_export

        onnx_export.check(model.dtype)
        write, open_program = onnx_export.write, onnx_export.open_program
    else:
        write, open_program = write_export, open_export
    names = (*FILES, CONFIG, ARCHITECTURE, CARD, *BESIDE)
    refuse_to_replace(out, "an exported model", names, source=folder, force=force)
    built: Any = model.refuse_nonfinite().build(torch.device("cpu"))
    pair = model.spec if isinstance(model.spec, EncoderDecoder) else None
    programs = [TracedModel(built, embed)] if pair is None else trace_pair(built, pair)
    with replace_folder(out) as draft:
        for traced in programs:
            write(traced, traced.eval().record(), draft)
        _describe(model, draft, folder)
        keep_card(draft, out)
        if not verify:
            return ""
        opened = [open_program(traced, draft) for traced in programs]
        compared = compare(programs[0], opened[0]) if pair is None else compare_pair(built, programs, opened)
        return f"{'onnxruntime' if form == 'onnx' else 'torch'} gives {compared}"


def _describe(model: StoredModel, draft: Path, folder: Path) -> None:
    """Write Zoo's description of the model, a published family's config if one fits, and the tokenizer's files."""
    write_architecture(model.spec, draft)
    with suppress(FitsNoFamily):
        config = {**read_special_ids(folder, model.spec.vocab_size), **find_config(model.spec, model.source)[0]}
        write_json(draft / CONFIG, config, sort_keys=True)
    copy_beside(folder, draft)


# ---------------------------------------------------------------- torch.export


def write_export(traced: TracedModel, program: Any, folder: Path) -> None:
    """Write a recorded program to a .pt2 file."""
    torch.export.save(program, folder / f"{traced.name}.pt2")


def open_export(traced: TracedModel, folder: Path) -> Callable[[Named], Named]:
    """Open a .pt2 file as a function of named inputs. The function raises CheckpointError for inputs that do not
    fit."""
    file = folder / f"{traced.name}.pt2"
    run = torch.export.load(file).module()

    def call(given: Named) -> Named:
        past = {name: each for name, each in given.items() if name.startswith("past_")}
        others = {name: each for name, each in given.items() if name not in past}
        try:
            return run(**others, **({"past": past} if past else {}))
        except (AssertionError, RuntimeError) as error:  # a guard of torch's
            raise CheckpointError(f"{file}: refuses an input, {shorten(str(error), 200)}") from error

    return call


# ---------------------------------------------------------------- compare


def compare(traced: TracedModel, run: Callable[[Named], Named]) -> str:
    """Compare a program's values with the model's, on padded rows of two lengths. A decoder reads a prompt, then one
    token at a time. Returns what was compared, in words. Raises CheckpointError if values differ."""
    steps = f"a prompt and {STEPS} cached steps each" if traced.held else "padding after the shorter"
    how = "cached steps" if traced.one_by_one else steps
    found = {sizes: _list_pairs(traced, run, *sizes) for sizes in zip((1, 3), _choose_lengths(traced), strict=True)}
    return f"{_compare_values(found, _choose_bound(traced))}, {how}"


def compare_pair(model: Model, programs: Sequence[TracedModel], run: Sequence[Callable[[Named], Named]]) -> str:
    """Compare the values of an encoder-decoder's three programs with the model's, on padded sources of two lengths. The
    decoder reads a target's first tokens, then one token at a time. Returns what was compared, in words. Raises
    CheckpointError if values differ."""
    lengths = zip((1, 3), *map(_choose_lengths, programs[:2]), strict=True)
    found = {
        (batch, f"{source} → {target}"): _list_targets(model, programs, run, batch, source, target)
        for batch, source, target in lengths
    }
    return f"{_compare_values(found, _choose_bound(programs[1]))}, then {STEPS} cached steps each"


def _compare_values(found: Mapping[Any, Iterator[tuple[str, Tensor, Tensor]]], close: float) -> str:
    """Compare pairs of values, which `found` has for each (number of rows, number of tokens). Returns the largest
    difference, in words. Raises CheckpointError for a difference above `close` times the largest value."""
    largest, top = 0.0, 1.0
    with torch.inference_mode():
        for (_, tokens), values in found.items():
            for name, ours, theirs in values:
                error, top = float((ours.float() - theirs.float()).abs().max()), max(top, float(ours.abs().max()))
                if not error <= close * top:
                    said = f"differs by {error:.2g} of {top:.2g} in rows of {tokens} tokens"
                    raise CheckpointError(f"{name}: of the program {said} (a bug here, or in what writes it)")
                largest = max(largest, error)
    rows = " and ".join(f"{batch} × {tokens}" for batch, tokens in found)
    return f"the model's values, largest difference {largest:.1e} (largest value {top:.1f}): rows of {rows} tokens"


def _choose_bound(traced: TracedModel) -> float:
    """Choose the tolerance of a comparison, relative to the largest value: rounding errors grow with the depth."""
    dtype = next(traced.model.parameters()).dtype
    close = CLOSE if dtype.itemsize > 2 else ROUGH * torch.finfo(dtype).eps
    return close * max(1.0, traced.tower.n_layers / 12) ** 0.5


def _choose_lengths(traced: TracedModel) -> list[int]:
    """Choose two numbers of tokens. The larger exceeds every attention window of at most LONGEST tokens."""
    sights = [each.attention.sight for each in traced.tower.blocks.values()]
    windows = [each for sight in sights for each in (sight.window, sight.chunk) if each and each <= LONGEST]
    wanted = LENGTHS[0], max([LENGTHS[1], *(each + STEPS + 2 for each in windows)])
    return [min(each, traced.tower.max_seq_len) for each in wanted]


def _list_pairs(
    traced: TracedModel, run: Callable[[Named], Named], batch: int, tokens: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield a name, the model's values and the values of the program, for each row. Row b has b tokens of padding: at
    its start if the program has a cache, else at its end."""
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


def _list_targets(
    model: Model, programs: Sequence[TracedModel], run: Sequence[Callable[[Named], Named]], batch: int, *lengths: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield a name, the model's logits and the logits of the programs, for each row of an encoder-decoder. Source b has
    b tokens of padding at its end."""
    sources, targets = (
        each.make_inputs(batch, length)["input_ids"] for each, length in zip(programs, lengths, strict=False)
    )
    real = torch.arange(sources.shape[1])[None] < sources.shape[1] - torch.arange(batch)[:, None]
    hidden = run[0]({"input_ids": sources, "attention_mask": real.long()})["last_hidden_state"]
    about, logits = {"encoder_attention_mask": real.long()}, []
    start, kept = targets.shape[1] - STEPS, programs[1].held
    past: dict[str, Tensor] = {}
    for stop in range(start, targets.shape[1] + 1):
        new = targets[:, :stop] if not past else targets[:, stop - 1 : stop]
        given = past or {"encoder_hidden_states": hidden}
        found = run[bool(past) + 1]({"input_ids": new, **about, **given})
        past |= {each.before: found[each.after] for each in kept if each.after in found}
        logits.append(found["logits"])
    theirs = torch.cat(logits, 1)
    for row, own in enumerate(real):
        ours = model(sources[row : row + 1, own], decoder_input_ids=targets[row : row + 1]).logits
        yield "logits", ours, theirs[row : row + 1]


def _decode(traced: TracedModel, run: Callable[[Named], Named], given: Named) -> Named:
    """Run a prompt, then one token at a time. Returns all logits [B, N, V]."""
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
