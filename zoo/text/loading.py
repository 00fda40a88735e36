"""Load a model for generating: its weights, its tokenizer, and the end-of-text tokens that its folder states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.distributed.world import ALONE, World
from zoo.errors import ConfigError
from zoo.kernels import machine_of
from zoo.lazy import torch
from zoo.run.builder import pick_device
from zoo.run.fastest_dtype import multiplies_in_bf16, settle_cpu
from zoo.run.linear.probe import BUCKETS
from zoo.run.linear.ready import check_weights, make_ready
from zoo.run.rank import build_part, pick_rank_device

if TYPE_CHECKING:
    from zoo.checkpoint.stored import StoredModel
    from zoo.data.tokenizer import Tokenizer
    from zoo.run.layer import Model


@dataclass(frozen=True)
class Loaded:
    """A model for generating, its tokenizer, the end-of-text ids in addition to the tokenizer's, and its folder."""

    model: Any
    tokenizer: Tokenizer
    ends: Sequence[int]
    folder: Path


def find_folder(checkpoint: str | Path | None) -> Path:
    """Find a checkpoint or a run folder; None finds the last run started from the working directory."""
    from zoo import runs
    from zoo.checkpoint.finding import find

    return find(runs.last_run() if checkpoint is None else checkpoint)


def load(
    checkpoint: str | Path | None,
    *,
    device: str = "auto",
    dtype: Any = None,
    fp8: str | None = None,
    weights: str | None = None,
    rows: int = 1,
    stable: bool = False,
    world: World = ALONE,
    adapters: Mapping[str, str] | None = None,
    note: Callable[[str], object] | None = None,
) -> Loaded:
    """Load a model and its tokenizer for generating.

    `checkpoint` is as in `find_folder`. `dtype` None means the file's dtype, with two exceptions: float32 on a CPU
    where it is faster, and bfloat16 in place of float32 on a GPU with tensor cores for it, because no flash kernel runs
    in float32. `fp8` converts weights to float8 (`zoo.run.fp8.quantize`); other tensors are then bfloat16 unless
    `dtype` is given. On a CPU the model is prepared (`zoo.run.linear.prepare`) to serve up to `rows` rows at once;
    `weights` names the precision of its quantised weights. `note` gets a line each on the unread parts of a multimodal
    folder, on weights in float8 or fewer bits, on a dtype other than the file's, and on a number of threads other than
    torch's default. Each process of `world` holds a part of the model (tensor parallelism). `adapters` are folders by
    name, which requests choose from (`zoo.checkpoint.named_adapters`). Raises ConfigError for a folder that cannot be
    loaded, and for a precision that the device lacks.
    """
    from zoo.checkpoint import hf, store
    from zoo.checkpoint.named_adapters import add_adapters
    from zoo.data.tokenizer import Tokenizer
    from zoo.run.fp8 import quantize, summarize_products

    tell = note or (lambda line: None)
    check_precision(device, fp8, weights)
    folder = find_folder(checkpoint)
    tokenizer = Tokenizer.load(folder)
    where = pick_rank_device(device, world)
    stored = store.open_model(folder, dtype or ("bf16" if fp8 else None))
    if dtype is None and stored.dtype == torch.float32 and multiplies_in_bf16(machine_of(where)):
        stored = stored.cast(torch.bfloat16)
        tell("computes in bfloat16, which has tensor cores and flash kernels, not the weights' float32 (--dtype fp32)")
    model: Any = stored.build(where) if world.size == 1 else read_part(stored, world, where)
    if unread := hf.describe_unread(model):
        tell(unread)
    if fp8:
        tell(f"fp8 {fp8}: {summarize_products(quantize(model, fp8))}")
    if where.type == "cpu":
        settle_cpu(model, tell, dtype=None if dtype is None else f"dtype: {dtype}", keep=fp8 is not None)
    if adapters:
        add_adapters(model, folder if checkpoint is None else checkpoint, adapters)
    if world.size == 1 and not fp8:
        make_ready(model, weights, tell, rows=tuple(count for count in BUCKETS if count <= rows), stable=stable)
    return Loaded(model, tokenizer, hf.read_end_ids(folder), folder)


def read_part(stored: StoredModel, world: World, device: torch.device) -> Model:
    """Read this rank's part of a stored model: slices of tensors, read directly to `device`. All processes must call
    this."""
    from zoo.checkpoint.parallel_checkpoint import fill_pieces, hold_weights
    from zoo.checkpoint.stored import place_tensor

    part: Any = build_part(stored.spec, world, device.type)
    for name, each in part.state_dict().items():
        form = stored.tensors.forms[name]
        place_tensor(part, name, torch.empty(each.shape, dtype=form.dtype, device=device))
    fill_pieces(hold_weights(part), stored.tensors)
    if stored.source is not None:
        part.source = stored.source
    return part.eval()


def check_serving(folder: Path, speculate: int, draft: Path | None, deterministic: bool) -> None:
    """Raise ConfigError, before any weight is read, for serving options that the folder's model cannot have: an
    incompatible draft model, or a deterministic mode that it lacks."""
    from zoo.checkpoint import store
    from zoo.generation.passes import check_deterministic
    from zoo.generation.prompt_towers import find_writer
    from zoo.generation.proposals import check_draft

    if draft is None and not deterministic:
        return
    spec = store.load_spec(folder)
    if deterministic:
        check_deterministic(spec, speculate)
    if draft is not None:
        check_draft(store.load_spec(find_folder(draft)), find_writer(spec).output_vocab_size)


def check_precision(device: str, fp8: str | None, weights: str | None) -> None:
    """Raise ConfigError, before anything is read, for a precision that the device does not support, and if both `fp8`
    and `weights` are given."""
    from zoo.run.fp8 import WEIGHT_ONLY, require_fp8

    check_weights(weights, pick_device(device))
    if fp8 and weights:
        raise ConfigError(f"weights: {weights} was requested together with fp8: {fp8} (one of the two)")
    if fp8:
        require_fp8(fp8, pick_device(device), f"fp8: {fp8}", WEIGHT_ONLY)
