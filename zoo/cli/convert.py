"""`zoo convert`: convert a checkpoint of one kind to another."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoo import report, runs
from zoo.cli.common import Dtype, Pooling
from zoo.cli.options import argument, flag, option
from zoo.costs.params import count_parameters
from zoo.errors import ConfigError, FitsNoFamily

if TYPE_CHECKING:
    from collections.abc import Callable

    from zoo.checkpoint.stored import StoredModel


def run(
    checkpoint: Path = argument("A checkpoint, a run, a Hugging Face folder, or a GGUF file.", default=...),
    out: Path = argument("The folder (--to gguf: the file) to write: written atomically.", default=...),
    to: Literal["hf", "zoo", "peft", "gguf", "onnx", "export"] = option(
        "hf (transformers loads it), zoo (Zoo's own layout), peft (only a run's adapters), gguf (llama.cpp's), onnx or "
        "export (torch.export's .pt2).",
        default="hf",
    ),
    ggml: str | None = option(
        "With --to gguf: tensor type of weight matrices. [default: the weights' dtype]", "--type"
    ),
    verify: bool = option(
        "Compare token ids and logits with transformers in a fresh process. The checkpoint's checksums are always "
        "checked.",
        default=True,
    ),
    into: Path | None = option(
        "The multimodal folder that the text model came from: OUT is a copy of it with the new text weights."
    ),
    pooling: Pooling | None = option("Write a sentence-transformers folder with this pooling and normalization."),
    dtype: Dtype = None,
    force: bool = flag("Replace OUT even if it is a model that zoo did not write."),
) -> None:
    """Write a checkpoint as a Hugging Face folder, llama.cpp's GGUF file, an exported graph (ONNX), or in Zoo's layout.

    A model that transformers does not implement is written for the classes of `zoo.hf` (import it before loading).
    Fields that transformers lacks are listed.

    With --verify the command succeeds only if transformers, in a fresh process, gives the same token ids and logits:
    also for padded and truncated texts, with the chat template, and through transformers' pipeline. One line lists what
    was compared.
    Low-rank adapters are merged into the weights, except with --to peft, which writes them alone. Weights are read,
    converted and written one tensor at a time; only --verify needs memory for the model. For a multimodal folder only
    the text model is converted; with --to hf the rest is copied unchanged, as are a sentence-transformers folder's
    modules.

    --to gguf writes one file, tokenizer included, for architectures that llama.cpp has. For an encoder llama.cpp
    returns hidden states; for a sequence classifier, its logits. The file is verified before it is moved into place: by
    Zoo's own reader and, where its Python package is installed, by llama.cpp.

    --to onnx and --to export write a graph that takes and returns the KV cache (three graphs for an encoder-decoder).
    It is verified before it is moved into place: run by onnxruntime or torch, it must give the model's values, for
    padded sequences and for tokens decoded one by one.
    """
    from zoo.checkpoint import adapter_files, hf, peft_files, store
    from zoo.checkpoint.finding import find
    from zoo.checkpoint.verify_folder import require_transformers

    if into is not None and to != "hf":
        raise ConfigError(f"--into: a multimodal folder is written to hf, not {to} (--to hf)")
    if pooling is not None and (to != "hf" or into is not None):
        raise ConfigError("--pooling: a sentence-transformers folder is written to hf alone (--to hf, without --into)")
    if ggml is not None and to != "gguf":
        raise ConfigError(f"--type: is a GGUF file's, not one of {to} (--to gguf)")
    if verify and to == "hf":
        require_transformers()
    folder = find(checkpoint)
    adapter_files.refuse_to_replace_base(folder, out)
    if to == "peft":
        config = peft_files.save_for_peft(folder, out, force=force)
        print(f"written: {out}, adapters of {len(config['target_modules'])} products in peft's format")
        base = config["base_model_name_or_path"]
        if base is not None and Path(base).exists() and (find(base) / runs.ARCHITECTURE).is_file():
            how = f"`zoo convert {base} BASE`, then PeftModel.from_pretrained(AutoModel….from_pretrained(BASE), OUT)"
            print(f"its base is zoo's own, and peft reads Hugging Face folders: {how}")
        print(f"not verified: `zoo convert {checkpoint} OUT` compares the merged model with transformers")
        return
    stored = store.open_model(folder, dtype, mapped=False)
    if note := hf.describe_unread(stored):
        print(note)
    if to == "gguf":
        _write_gguf(stored, out, folder, ggml, force, verify)
    elif to in ("onnx", "export"):
        _write_exported(stored, out, folder, to, force, verify)
    elif to == "zoo":
        store.save_stored(stored, out, beside=folder, force=force)
        print(f"written: {out}, {count_parameters(stored.spec)['total']:,} parameters")
    else:
        compared = _write_hf(stored, out, folder, into, pooling, force, verify, dtype)
        print(f"verified: {compared}" if verify else "not verified: nothing has been compared with transformers")


def _write_hf(
    stored: StoredModel,
    out: Path,
    folder: Path,
    into: Path | None,
    pooling: Pooling | None,
    force: bool,
    verify: bool,
    dtype: Dtype,
) -> str:
    """Write a Hugging Face folder, and print what was written. With `verify` the folder is compared with the model
    before it appears. Returns a description of the comparison."""
    from zoo.checkpoint import hf, store
    from zoo.families.multimodal import find_wrapper
    from zoo.families.serving import describe_serving
    from zoo.text.handover import verify_draft

    compared = []

    def check(draft: Path, **how: Any) -> None:
        if verify:
            compared.append(verify_draft(store.load(folder, dtype), folder, draft, out, **how).describe())

    try:
        config = hf.save(stored, out, beside=folder, into=into, pooling=pooling, force=force, check=check)
        name, served = config["architectures"][0], find_wrapper(config) is None
    except FitsNoFamily as error:
        if into is not None or pooling is not None:
            raise
        name, served = _write_own(stored, out, folder, force, error, check), False
    files = sorted(out.iterdir())
    size = report.format_size(sum(file.stat().st_size for file in files))
    held = count_parameters(stored.spec)["total"]
    print(f"written: {out}, {held:,} parameters as {name}, {size} in {len(files)} files")
    if served:
        print(f"{describe_serving(name)} (docs/serving.md)")
    return "".join(compared)


def _write_gguf(stored: StoredModel, out: Path, folder: Path, ggml: str | None, force: bool, verify: bool) -> None:
    """Write a GGUF file, and print what was written and read back."""
    from zoo.checkpoint import beside, gguf_export
    from zoo.text.sentence import read_pipeline

    pipeline = read_pipeline(folder) if (folder / beside.MODULES).is_file() else None
    pooling = " and ".join(pipeline.pooled.names) if pipeline else ""
    dense = pipeline.list_matrices() if pipeline else ()
    made = gguf_export.save(stored, out, folder, ggml, pooling=pooling, dense=dense, force=force, verify=verify)
    held, size = count_parameters(stored.spec)["total"], report.format_size(out.stat().st_size)
    print(f"written: {out}, {held:,} parameters as {made.describe()}, {size}")
    print(f"verified: {made.compared}")


def _write_exported(stored: StoredModel, out: Path, folder: Path, to: str, force: bool, verify: bool) -> None:
    """Write a program of tensors, and print what was written and compared."""
    from zoo.checkpoint import beside, exported
    from zoo.text.sentence import read_pipeline

    embed = partial(read_pipeline(folder).apply, n_prompt=0, dim=None) if (folder / beside.MODULES).is_file() else None
    compared = exported.save(stored, out, folder, to, embed=embed, force=force, verify=verify)
    size = report.format_size(sum(file.stat().st_size for name in exported.FILES for file in out.glob(name)))
    print(f"written: {out}, {count_parameters(stored.spec)['total']:,} parameters, {size}")
    print(f"verified: {compared}" if verify else "not verified: the program was not run")


def _write_own(
    stored: StoredModel, out: Path, folder: Path, force: bool, error: FitsNoFamily, check: Callable[..., None]
) -> str:
    """Write a model that fits no published family for the classes of zoo.hf. Returns the name of the class."""
    from zoo.checkpoint.verify_folder import require_transformers

    require_transformers()
    from zoo.hf import own_folder

    try:
        name = own_folder.save(stored, out, folder, force=force, check=partial(check, compare=own_folder.verify))
    except ConfigError as own:
        raise ConfigError(*error.faults, *own.faults) from None
    print(*(f"no family: {fault}" for fault in error.faults), sep="\n")
    print(f"transformers opens it after `import zoo.hf`: {own_folder.name_auto(name)}.from_pretrained({str(out)!r})")
    return name
