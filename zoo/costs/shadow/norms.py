# B batch, T tokens, S keys, H heads, K key-value heads, C head width
"""Apply norms, dropout and attention to shadows. They save different tensors on CUDA and on a CPU."""

from __future__ import annotations

from typing import Any

from zoo.costs.shadow.dtypes import BOOL, FLOAT32
from zoo.costs.shadow.elementwise import UNARY, add, multiply
from zoo.costs.shadow.products import cast_for_autocast, matmul
from zoo.costs.shadow.reductions import mean, repeat_interleave, softmax
from zoo.costs.shadow.strides import Shape
from zoo.costs.shadow.tape import current_tape
from zoo.costs.shadow.tensor import Core, make_result, wants_gradient


def layer_norm(x: Core, normalized_shape: Shape, weight: Any = None, bias: Any = None, eps: float = 0.0) -> Any:
    """Apply LayerNorm. It saves its input, and each row's mean and rstd: in float32 on CUDA, on a CPU in the weight's
    dtype (or the input's, without a weight)."""
    rows = (*x.shape[:-1], 1)
    wide = FLOAT32 if x.is_cuda else (x if weight is None else weight).dtype
    kept = [make_result(name, [], rows, wide) for name in ("mean", "rstd")]
    return make_result("layer_norm", [x, weight, bias], x.shape, x.dtype, saves=[x, *kept, *_present(weight, bias)])


def rms_norm(x: Core, normalized_shape: Shape, weight: Core | None = None, eps: float | None = None) -> Any:
    """Apply RMSNorm. On CUDA it saves its input and each row's rstd. On a CPU it is a composition of float32
    operations, which also save the normalised input."""
    if x.is_cuda:
        rstd = make_result("rstd", [], (*x.shape[:-1], 1), FLOAT32)
        return make_result("rms_norm", [x, weight], x.shape, x.dtype, saves=[x, rstd, *_present(weight)])
    wide = x.float()
    y = multiply(wide, UNARY["rsqrt"](add(mean(UNARY["square"](wide), -1, True), eps or 0.0)))
    return (y if weight is None else multiply(y, weight)).to(x.dtype)


def divide_by_rms(x: Core, scale: Core | None, eps: float) -> Any:
    """Apply `zoo.model.norm.divide_by_rms`, which saves the same tensors on every device: its input and each row's
    rstd."""
    rstd = make_result("rstd", [], (*x.shape[:-1], 1), x.dtype)
    name = "rms_norm" if x.is_cuda else "divide_by_rms"
    return make_result(name, [x, scale], x.shape, x.dtype, saves=[x, rstd, *_present(scale)])


def dropout(x: Core, p: float = 0.5, training: bool = True) -> Any:
    """Apply dropout. It saves a byte for each value on CUDA, the factor of each value on a CPU."""
    if not p or not training:
        return x
    kept = make_result("dropped", [], x.shape, BOOL if x.is_cuda else x.dtype)
    return make_result("dropout", [x], x.shape, x.dtype, saves=[kept])


def drop_values(x: Core) -> Any:
    """Apply `zoo.kernels.drop.drop_values`, which saves a byte for each value on every device."""
    return make_result("dropout", [x], x.shape, x.dtype, saves=[make_result("dropped", [], x.shape, BOOL)])


def _present(*tensors: Any) -> list[Any]:
    return [each for each in tensors if each is not None]


def attend_torch(
    q: Core,
    k: Core,
    v: Core,
    attn_mask: Core | None = None,
    *,
    is_causal: bool = False,
    scale: object = None,
    enable_gqa: bool = False,
    dropout_p: float = 0.0,
) -> Any:
    """Apply torch's SDPA to q [B, H, T, C], k [B, K, S, C], v [B, K, S, Cv]: [B, H, T, Cv], laid out as [B, T, H, Cv].

    A fused kernel saves q, k, v, the result and each row's logsumexp. A CPU has no fused kernel for values of another
    width than keys, nor for a bias that requires a gradient.
    """
    q, k, v, mask = cast_for_autocast(q, k, v, attn_mask)
    fused = q.is_cuda or (q.shape[3] == v.shape[3] and not wants_gradient(mask))
    if not fused:
        with current_tape().set(autocast=None):
            return _attend_unfused(q, k, v, mask, is_causal)
    batch, heads, tokens, _ = q.shape
    width = v.shape[3]
    sums = make_result("sdpa_lse", [], (batch, heads, tokens), FLOAT32)
    strides = (tokens * heads * width, width, heads * width, 1)
    saves = [q, k, v, sums, *_present(mask)]
    shape = (batch, heads, tokens, width)
    return make_result("sdpa", [q, k, v, mask], shape, q.dtype, saves=saves, saves_result=True, strides=strides)


def fused_attention(q: Core, k: Core, v: Core) -> Any:
    """Apply a flash or flex kernel to q [B, T, H, C], k [B, S, K, C], v [B, S, K, Cv]: [B, T, H, Cv]. It saves q, k, v,
    the result and each row's logsumexp."""
    batch, tokens, heads, _ = q.shape
    sums = make_result("attention_lse", [], (batch, heads, tokens), FLOAT32)
    shape = (batch, tokens, heads, v.shape[3])
    return make_result("attention", [q, k, v], shape, q.dtype, saves=[q, k, v, sums], saves_result=True)


def _attend_unfused(q: Core, k: Core, v: Core, mask: Core | None, causal: bool) -> Any:
    """Apply SDPA's math path: in float32, with the square root of the scale on q and k, and a dense causal mask."""
    dtype = q.dtype
    if k.shape[1] != q.shape[1]:
        k, v = (repeat_interleave(each, q.shape[1] // k.shape[1], 1) for each in (k, v))
    q, k, v = q.float(), k.float(), v.float()
    if causal:
        mask = make_result("causal", [], (q.shape[2], k.shape[2]), FLOAT32)
    scores = matmul(multiply(q, 1.0), multiply(k, 1.0).transpose(-1, -2))
    if mask is not None:
        scores = add(scores, mask)
    return matmul(softmax(scores, -1), v).to(dtype)
