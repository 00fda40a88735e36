"""Compare the figures of `zoo stats` with the model itself, built, run and trained for a step in torch's fake mode.

A fake tensor has a shape, a dtype and a device, but no storage. The real program runs, kernel by kernel, but a model of
any size takes only seconds and no memory. Measurements are those of a CPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from zoo.cache.cache import Cache
from zoo.costs.activations import PassShape, list_sections
from zoo.costs.again import tell_reads_apart
from zoo.costs.cache_sizes import kv_cache
from zoo.costs.flops import core_flops, memory_flops, product_flops, row_flops, skipped_flops
from zoo.costs.memory import training
from zoo.costs.pairs import Look
from zoo.costs.params import count_parameters
from zoo.costs.rows import Priced, list_blocks, trains_more
from zoo.costs.setup import Setup
from zoo.costs.states import ORTHOGONAL, states
from zoo.errors import ConfigError
from zoo.model.encoder_decoder import EncoderDecoder
from zoo.model.tower import Tower
from zoo.run.builder import build, resolve_dtype
from zoo.spec import placed_tensors
from zoo.training.optim import Optim

if TYPE_CHECKING:
    from zoo.run.layer import Model

Row = dict[str, Any]

PROBE = 64
"""Tokens of the sequence on which FLOPs, saved activations and peak memory are measured. FLOPs are sums over tokens and
pairs, so any length would do for them."""

CLOSE = 0.02
"""Largest allowed relative difference between Zoo's peak memory, a sum over the sections of a pass, and torch's."""


def verify(spec: Tower | EncoderDecoder, setup: Setup | None = None) -> list[Row]:
    """Verify each figure of `zoo stats` that can be measured on a model. Imports torch.

    A row has the figure's `name`, its value `counted` by zoo.costs and `found` in the model, whether both are `equal`
    (None if it could not be measured), and a `note` on the measurement.
    """
    setup = setup or Setup()
    if trains_more(spec):
        raise ConfigError("verify: runs no modules that training alone runs (mtp=null)")
    held = sum(parameter.numel() for parameter in build(spec, device="meta").parameters())
    rows = [_row("parameters", count_parameters(spec)["total"], held, "the built model's parameters")]
    with _fake(spec, setup.dtype) as model:
        rows += _flops(spec, model)
        rows += _cached(spec, model, setup)
        rows += _optimized(spec, model, setup)
        rows += _kept(spec, model, setup)
        rows += _peak(spec, model, setup)
    return rows


def verify_flops(spec: Tower | EncoderDecoder) -> list[Row]:
    """Verify the FLOPs of a pass, of both passes of training, and of decoding a token. Imports torch."""
    with _fake(spec, "fp32") as model:
        return list(_flops(spec, model))


def _row(name: str, counted: float, found: float, note: str, within: float = 0.0) -> Row:
    """Make a row of the result. `within` is the relative difference that still counts as equal."""
    equal = abs(counted - found) <= within * abs(found)
    return {"name": name, "counted": counted, "found": found, "equal": equal, "note": note}


@contextmanager
def _fake(spec: Tower | EncoderDecoder, dtype: str) -> Iterator[Model]:
    """Enter fake mode, and yield the model built of fake tensors on the CPU."""
    kind = resolve_dtype("bf16" if dtype == "fp8" else dtype)
    model = build(spec, device="meta", dtype=kind).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                fake = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype, device="cpu"))
                setattr(module, name, fake)
            for name, held in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(held.shape, dtype=held.dtype, device="cpu"))
        yield model


def _ids(spec: Tower | EncoderDecoder, batch: int, tokens: int) -> torch.Tensor:
    return torch.zeros(batch, min(tokens, spec.max_seq_len), dtype=torch.long)


def _inputs(spec: Tower | EncoderDecoder, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the additional inputs of a pass: for an encoder-decoder, as many decoder tokens as encoder tokens."""
    return {"decoder_input_ids": ids.clone()} if spec.kind == "encoder_decoder" else {}


def _flops(spec: Tower | EncoderDecoder, model: Model) -> Iterator[Row]:
    """Count FLOPs with torch's FlopCounterMode. It counts only the eager kernel, which computes masked pairs too."""
    ids = _ids(spec, 1, PROBE)
    tokens = ids.shape[1]
    model.requires_grad_(False)
    model.kernel = "eager"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids, **_inputs(spec, ids))
    square = core_flops(spec, lambda look: look.square(tokens), tokens) + row_flops(spec)
    note = f"torch's FlopCounterMode, eager kernel, on {tokens} tokens whatever the context, masked pairs too"
    forward = product_flops(spec) * tokens + square
    yield _row("FLOPs, forward", forward, counter.get_total_flops(), note)
    skipped = skipped_flops(spec, lambda look: look.square(tokens), tokens)
    yield _row("FLOPs, training", 3 * forward - skipped, _training_flops(spec, model, ids), "the same, both passes")
    decoder = next((tower for tower in spec.towers().values() if tower.causal), None)
    if decoder is not None:
        found = _decoding_flops(spec, model, ids)
        seen = core_flops(decoder, lambda look: _compute_all(look).pairs(1, tokens - 1, tokens), 1, tokens - 1)
        counted = product_flops(decoder) - memory_flops(decoder) + seen
        yield _row("FLOPs, decoding", counted, found, f"the same, token {tokens} from a cache")
    model.kernel = "auto"


def _compute_all(look: Look) -> Look:
    """Return the attention pattern (Look) with all pairs that the eager kernel computes in decoding. The kernel also
    computes the keys that an indexer leaves out, except if keys are pools (`near`): chosen pools are gathered first."""
    return look if look.near else look._replace(top_k=None)


def _training_flops(spec: Tower | EncoderDecoder, model: Model, ids: torch.Tensor) -> int:
    model.requires_grad_(True)
    own: dict[Any, Any] = {torch.ops.aten.convolution_backward: _count_convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        out = model(ids, **_inputs(spec, ids))
        (out.hidden if out.logits is None else out.logits).float().sum().backward()
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return counter.get_total_flops()


def _count_convolution_backward(made: Any, x: Any, weight: Any, *how: Any, **given: Any) -> int:
    """Count the FLOPs of a convolution's two gradients, each equal to those of the forward pass. torch's own formula
    ignores groups in the weights' gradient."""
    *_, transposed, _, _, wanted = how
    return conv_flop_count(x, weight, made, transposed) * sum(wanted[:2])


def _decoding_flops(spec: Tower | EncoderDecoder, model: Any, ids: torch.Tensor) -> int:
    cache = Cache.allocate(model, 1, ids.shape[1], source=ids.shape[1])
    tower = list(spec.towers().values())[-1]
    with torch.no_grad():
        more: dict[str, Any] = {"cache": cache, "logits_to_keep": 0 if tower.head.reads_rows else None}
        if spec.kind == "encoder_decoder":
            model, more = model.decoder, {**more, "memory": model.encoder(ids).hidden}
        model(ids[:, :-1], **more)
        with FlopCounterMode(display=False) as counter:
            model(ids[:, -1:], **more)
    return counter.get_total_flops()


def _cached(spec: Tower | EncoderDecoder, model: Model, setup: Setup) -> Iterator[Row]:
    """Measure the bytes of the cache that generation allocates, and compare them with the price of the engine `zoo`."""
    if not any(tower.causal for tower in spec.towers().values()) or setup.engine not in ("ideal", "zoo"):
        return
    tokens, dtype = setup.tokens(spec), setup.cache_dtype or setup.dtype
    kind = torch.float8_e4m3fn if dtype == "fp8" else resolve_dtype(dtype)
    found = Cache.allocate(model, setup.batch, tokens, source=tokens, dtype=kind, device="cpu").nbytes
    counted = kv_cache(spec, replace(setup, engine="zoo"))["bytes"]
    yield _row("KV cache, bytes", counted, found, f"allocated for {setup.batch} × {tokens:,} tokens, in pages")


# ---------------------------------------------------------------- training


def _optimized(spec: Tower | EncoderDecoder, model: Model, setup: Setup) -> Iterator[Row]:
    """Measure the set-up's optimizer states after one step, without step counters."""
    if setup.optimizer in UNFAKED:
        why = f"a fake step of {setup.optimizer} cannot be taken: it {UNFAKED[setup.optimizer]}"
        yield {"name": "optimizer states, bytes", "counted": None, "found": None, "equal": None, "note": why}
        return
    model.requires_grad_(True)
    learning = {name for name, row, _ in placed_tensors(spec, spec.d_model) if row.learns}
    for name, parameter in model.named_parameters():
        parameter.grad = torch.empty_like(parameter) if name in learning else None
    options = {"dtype": "bf16"} if setup.optimizer in ORTHOGONAL else {}  # `auto` would time matrix products
    optimizer = Optim.parse({"kind": setup.optimizer, **options}).build(model)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values()]
    found = sum(value.nbytes for value in kept if torch.is_tensor(value) and value.ndim)
    model.zero_grad(set_to_none=True)
    alone = Setup(
        dtype="bf16" if setup.dtype == "fp8" else setup.dtype, precision="bf16_pure", optimizer=setup.optimizer
    )
    note = f"a step of {setup.optimizer}, states in the weights' dtype"
    yield _row("optimizer states, bytes", states(spec, alone)["optimizer"], found, note)


UNFAKED = {"adafactor": "reads its tensors' values", "adamw8bit": "is compiled"}
"""Optimizers that do not run on fake tensors, with the reason."""


def _kept(spec: Tower | EncoderDecoder, model: Model, setup: Setup) -> Iterator[Row]:
    """Measure the bytes that autograd saves in a forward pass on a CPU, without weights and buffers."""
    ids = _ids(spec, 1, PROBE)
    model.train().requires_grad_(True)
    known = {each.untyped_storage()._cdata for each in (*model.parameters(), *model.buffers())}
    saved: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> _Saved:
        made = _Saved(tensor.detach())  # a result itself would keep its grad_fn, and so all that this saves
        saved.add(made)
        return made

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda made: made.tensor):
        out = model(ids, **_inputs(spec, ids))
    sizes = {each.tensor.untyped_storage()._cdata: each.tensor.untyped_storage().nbytes() for each in saved}
    found = sum(size for storage, size in sizes.items() if storage not in known)
    del out
    apart = tell_reads_apart(spec)
    counted = list_sections(apart, PassShape(context=ids.shape[1], dtype=setup.dtype, fused=False))
    note = f"torch's saved_tensors_hooks, {ids.shape[1]} tokens on a CPU"
    yield _row("saved activations, bytes", _whole(apart, counted), found, note)


class _Saved:
    """Wrapper of a tensor that autograd saves. When autograd frees the tensor, the wrapper leaves its WeakSet."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def _whole(spec: Priced, pieces: dict[str, Any]) -> int:
    """Sum the bytes that the sections of a pass save. A layer's section counts once for each layer of its kind."""
    total = 0
    for name, tower in spec.towers().items():
        prefix = f"{name}." if name else ""
        total += sum(pieces[f"{prefix}{piece}"].bytes for piece in ("embedding", "shared", "head"))
        total += sum(pieces[f"{prefix}layer:{kind}"].bytes for kind in tower.pattern)
    return total


class _WholePeak(MemTracker):
    """torch's MemTracker without the peaks of single modules: updating these after every operator would take two thirds
    of the time. If torch renames the overridden method, only this saving is lost."""

    def _update_peak_stats(self, peak_state: Any) -> None:
        modules, self.memory_tracking = self.memory_tracking, WeakIdKeyDictionary()
        super()._update_peak_stats(peak_state)
        self.memory_tracking = modules


def _peak(spec: Tower | EncoderDecoder, model: Model, setup: Setup) -> Iterator[Row]:
    """Measure the peak memory of a second training step with torch's MemTracker (AdamW, in the weights' dtype)."""
    if all(tower.head.kind == "none" for tower in spec.towers().values()):
        return
    ids = _ids(spec, 1, PROBE)
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    tracker = _WholePeak()
    tracker.track_external(model, optimizer)
    with tracker:
        _step(spec, model, optimizer, ids)
        tracker.reset_mod_stats()
        _step(spec, model, optimizer, ids)
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    alone = Setup(context=ids.shape[1], dtype=setup.dtype, precision="bf16_pure")
    counted = training(spec, alone, fused=False)["train_peak"]
    note = f"torch's MemTracker, {ids.shape[1]} tokens on a CPU, AdamW, no recomputation; to {CLOSE:.0%}"
    yield _row("training peak, bytes", counted, peak["Total"], note, within=CLOSE)


def _step(spec: Tower | EncoderDecoder, model: Model, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> None:
    """Take one training step, freeing each tensor after its last use."""
    # with a global token, which Longformer's global projections need: a pass then uses all weights
    marked = any("global" in block.attention.extras for block in list_blocks(spec))
    out = model(ids, **_inputs(spec, ids), **({"global_attention_mask": torch.ones_like(ids)} if marked else {}))
    logits = out.logits.float().flatten(0, -2)  # of each token, or of each row
    loss = sum(out.losses.values(), F.cross_entropy(logits, ids.flatten()[: len(logits)]))
    del logits
    del out
    loss.backward()
    del loss
    optimizer.step()
    optimizer.zero_grad()
