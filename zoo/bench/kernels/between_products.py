# B batch, T tokens, N = B·T, D model width, F feed-forward width, V vocabulary, H heads, C head width, E experts
"""Time the operations between matrix products: norms, RoPE, SwiGLU and cross-entropy.

Three implementations are timed: zoo's own, the same compiled, and a library's. A library becomes a dependency only for
a measured gain. Also timed: the grouped matrix products of experts, and a layer whose products are in float8.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from zoo.bench.kernels.device_timing import time_call, time_passes
from zoo.bench.kernels.processes import Measurement, ReportRow, Settings
from zoo.bench.kernels.training_mfu import make_step
from zoo.compose import load
from zoo.kernels import machine_of
from zoo.kernels.grouped_products import grouped_linear
from zoo.lazy import Tensor, torch
from zoo.model.activation import SiLU
from zoo.model.loss import TokenLoss
from zoo.model.norm import LayerNorm, Norm, RMSNorm
from zoo.model.position.rotary import RoPE
from zoo.run import fp8
from zoo.run.builder import build
from zoo.run.environment import find_version

ACCOUNTING = (
    "pieces: activations in bf16, weights in float32; share = fewest possible bytes (inputs and gradients read once, "
    "outputs written once) ÷ seconds ÷ copy bandwidth"
)
LIBRARIES = {"liger": "liger-kernel", "quack": "quack-kernels"}


class PieceSizes(NamedTuple):
    """The dimensions of the timed tensors."""

    tokens: int = 8192
    d_model: int = 4096
    d_ff: int = 14336
    vocab: int = 128256
    heads: int = 32
    head_dim: int = 128
    experts: int = 64
    expert_width: int = 1408


SMALL = PieceSizes(32, 32, 64, 64, 2, 16, 4, 32)


class TimedPiece(NamedTuple):
    """One timed operation. `inputs` require gradients, activations first. `ways` are equivalent implementations by
    name. `moved` are the fewest bytes read and written by the forward pass, then by both passes."""

    inputs: list[Any]
    ways: dict[str, Callable[..., Any]]
    moved: tuple[int, int]


def list_jobs(settings: Settings) -> list[Measurement]:
    """List one job per operation and implementation, then the jobs of grouped products and of float8."""
    sizes = SMALL if settings.quick else PieceSizes()
    ways = {name: ("zoo", "compiled", *LIBRARIES) for name in PIECES}
    ways |= {"layernorm": ("zoo", "compiled", "liger"), "rotary": ("zoo", "compiled", "liger")}
    ways["swiglu"] = ("zoo", "compiled", "liger")
    found = [
        Measurement(f"{piece}: {way}", partial(time_piece, piece, way, sizes, settings))
        for piece, names in ways.items()
        for way in names
    ]
    found += [
        Measurement(f"grouped: {way}", partial(time_grouped, way, sizes, settings)) for way in ("grouped_mm", "loop")
    ]
    return found + [Measurement(f"layer: {way}", partial(time_layer, way, settings)) for way in ("bf16", *fp8.RECIPES)]


def time_piece(name: str, way: str, sizes: PieceSizes, settings: Settings) -> ReportRow:
    """Time one implementation of an operation, forward and in both passes, with the fraction of copy bandwidth."""
    row: ReportRow = {"piece": name, "way": way}
    if reason := _why_absent(way, settings):
        return {**row, "left_out": reason}
    if settings.quick and way == "compiled" and name != "rmsnorm":
        return {**row, "left_out": "quick: it takes seconds to compile"}
    piece = PIECES[name](sizes, settings.device, way)
    run = piece.ways["zoo" if way == "compiled" else way]
    run = torch.compile(run, dynamic=False) if way == "compiled" else run
    moved: dict[str, int] = dict(zip(("forward", "both"), piece.moved, strict=True))
    for which, taken in _time_piece(run, piece, settings).items():
        row[which] = {"seconds": taken, "share_of_copy": settings.share_of_copy(moved[which] / taken)}
    return row


def _time_piece(run: Callable[..., Any], piece: TimedPiece, settings: Settings) -> dict[str, float]:
    """Time the passes of an operation, in seconds. An operation without `inputs` always runs both."""
    if not piece.inputs:
        return {"both": time_call(run, settings.device, spend=0.01 if settings.quick else 0.1)}
    with torch.no_grad():
        outputs = run(*piece.inputs)
    slopes = [torch.randn_like(each) for each in (outputs if isinstance(outputs, tuple) else (outputs,))]
    return time_passes(run, piece.inputs, slopes, settings.device, quick=settings.quick)


def _why_absent(way: str, settings: Settings) -> str | None:
    """Return the reason why a library cannot be timed here; None if it can."""
    if way not in LIBRARIES:
        return None
    if settings.device != "cuda":
        return f"{LIBRARIES[way]} is for CUDA"
    return None if find_version(LIBRARIES[way]) else f"{LIBRARIES[way]} is not installed"


# ---------------------------------------------------------------- the pieces


def _rmsnorm(sizes: PieceSizes, device: str, way: str) -> TimedPiece:
    spec = RMSNorm(eps=1e-5)
    ways, inputs = _norm(spec, sizes, device)
    if way == "liger":
        from liger_kernel.transformers.functional import liger_rms_norm  # type: ignore[import-not-found]

        ways[way] = lambda x, weight: liger_rms_norm(x, weight, spec.eps)
    if way == "quack":
        from quack import rmsnorm  # type: ignore[import-not-found]

        ways[way] = lambda x, weight: rmsnorm(x, weight, eps=spec.eps)
    return TimedPiece(inputs, ways, (2 * inputs[0].nbytes, 5 * inputs[0].nbytes))


def _layernorm(sizes: PieceSizes, device: str, way: str) -> TimedPiece:
    spec = LayerNorm()
    ways, inputs = _norm(spec, sizes, device)
    if way == "liger":
        from liger_kernel.transformers.functional import liger_layer_norm  # type: ignore[import-not-found]

        ways[way] = lambda x, weight, bias: liger_layer_norm(x, weight, bias, spec.eps)
    return TimedPiece(inputs, ways, (2 * inputs[0].nbytes, 5 * inputs[0].nbytes))


def _norm(spec: Norm, sizes: PieceSizes, device: str) -> tuple[dict[str, Callable[..., Any]], list[Any]]:
    """Return the implementations of a norm as in models, by name, and their inputs: activations and weights."""
    from zoo.run.layer import Layer

    with torch.device(device):
        layer = Layer(spec, sizes.d_model)
    for weight in layer.parameters():
        torch.nn.init.ones_(weight)
    x = _draw_activations(device, sizes.tokens, sizes.d_model)
    return {"zoo": lambda x, *weights: layer(x)}, [x, *layer.parameters()]


def _rotary(sizes: PieceSizes, device: str, way: str) -> TimedPiece:
    """Make RoPE of q and k. k has a quarter of q's heads."""
    spec, length = RoPE(), sizes.tokens
    q, k = (
        _draw_activations(device, 1, length, heads, sizes.head_dim) for heads in (sizes.heads, max(sizes.heads // 4, 1))
    )
    tables = spec.tables(torch.arange(length, device=device)[None], sizes.head_dim, q.dtype)
    ways: dict[str, Callable[..., Any]] = {"zoo": lambda q, k: (spec.rotate(q, tables), spec.rotate(k, tables))}
    if way == "liger":
        from liger_kernel.transformers.functional import liger_rope  # type: ignore[import-not-found]

        cos, sin = (torch.cat((each, each), -1)[:, :, 0] for each in tables)  # 1 T C, as in Hugging Face
        ways[way] = lambda q, k: liger_rope(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    size = q.nbytes + k.nbytes
    return TimedPiece([q, k], ways, (2 * size, 4 * size))


def _swiglu(sizes: PieceSizes, device: str, way: str) -> TimedPiece:
    """Make the SwiGLU activation silu(gate) · up, without the matrix products around it."""
    gate, up = (_draw_activations(device, sizes.tokens, sizes.d_ff) for _ in range(2))
    silu = SiLU()
    ways: dict[str, Callable[..., Any]] = {"zoo": lambda gate, up: silu.apply(gate) * up}
    if way == "liger":
        from liger_kernel.transformers.functional import liger_swiglu  # type: ignore[import-not-found]

        ways[way] = liger_swiglu
    return TimedPiece([gate, up], ways, (3 * gate.nbytes, 8 * gate.nbytes))


def _cross_entropy(sizes: PieceSizes, device: str, way: str) -> TimedPiece:
    """Make the cross-entropy loss and the gradient of the logits. zoo and Liger write the gradient over the logits."""
    logits = _draw_activations(device, sizes.tokens // 2, sizes.vocab)
    targets = torch.randint(sizes.vocab, (len(logits),), device=device)
    own = TokenLoss(1 / len(logits))
    ways: dict[str, Callable[..., Any]] = {"zoo": lambda: own.overwrite(logits, targets, slice(None))}
    if way == "liger":
        from liger_kernel.transformers.functional import liger_cross_entropy  # type: ignore[import-not-found]

        ways[way] = partial(_take_gradient, lambda: liger_cross_entropy(logits, targets), logits)
    if way == "quack":
        from quack import cross_entropy  # type: ignore[import-not-found]

        ways[way] = partial(_take_gradient, lambda: cross_entropy(logits, targets), logits)
    return TimedPiece([], ways, (0, 2 * logits.nbytes))


def _take_gradient(loss: Callable[[], Tensor], logits: Tensor) -> None:
    logits.requires_grad_()
    torch.autograd.grad(loss().mean(), logits)


PIECES: dict[str, Callable[[PieceSizes, str, str], TimedPiece]] = {
    "rmsnorm": _rmsnorm,
    "layernorm": _layernorm,
    "rotary": _rotary,
    "swiglu": _swiglu,
    "cross-entropy": _cross_entropy,
}


def _draw_activations(device: str, *shape: int) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16)


# ---------------------------------------------------------------- products


def time_grouped(way: str, sizes: PieceSizes, settings: Settings) -> ReportRow:
    """Measure FLOP/s of the experts' grouped matrix product, forward and with backward, with random routing."""
    x = _draw_activations(settings.device, sizes.tokens, sizes.d_model)
    weight = _draw_activations(settings.device, sizes.experts, sizes.expert_width, sizes.d_model)
    counts = torch.randint(sizes.experts, (sizes.tokens,)).bincount(minlength=sizes.experts)
    offsets = counts.cumsum(0).int().to(settings.device)
    slope = _draw_activations(settings.device, sizes.tokens, sizes.expert_width)
    times = time_passes(
        partial(grouped_linear, offsets=offsets, method=way),
        [x, weight],
        [slope],
        settings.device,
        quick=settings.quick,
    )
    row: ReportRow = {"piece": "grouped", "way": way}
    work = 2 * sizes.tokens * sizes.d_model * sizes.expert_width
    for which, products in (("forward", 1), ("both", 3)):
        row[which] = {"seconds": times[which], "flops_per_second": products * work / times[which]}
    return row


def time_layer(way: str, settings: Settings) -> ReportRow:
    """Time a training step of a compiled Llama 3 8B layer with a small vocabulary, in bf16 or a float8 recipe."""
    row: ReportRow = {"piece": "layer", "way": way}
    if way in fp8.RECIPES and not find_version("torchao"):
        return {**row, "left_out": "torchao is not installed"}
    machine = machine_of(torch.device(settings.device))
    if way in fp8.RECIPES and not settings.quick and (reason := fp8.refuses(way, machine)):
        return {**row, "refused": reason}
    small = ("d_model=32", "n_heads=2", "n_kv_heads=1", "head_dim=16", "d_ff=32")
    overrides = ("n_layers=1", "vocab_size=512", *(small if settings.quick else ()))
    model = build(load("llama3-8b", overrides), device=settings.device, seed=settings.seed)
    if way in fp8.RECIPES:
        fp8.convert_to_fp8(model, way, emulate=settings.quick)
    rows, length = (1, 16) if settings.quick else (4, 2048)
    step = make_step(model, rows, length, compiled=not settings.quick)
    taken = time_call(step, settings.device, spend=0.01 if settings.quick else 1.0)
    return {**row, "both": {"seconds": taken, "tokens_per_second": rows * length / taken}}
