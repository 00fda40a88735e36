# B batch, T tokens, H value heads, G key heads, K key width, V value width, N chunks, L chunk length
"""The delta rule, gated or not: a token writes only the part of its value that the state does not yet recall."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from zoo.lazy import F, Tensor, torch
from zoo.model.activation import PlainActivation, SiLU
from zoo.model.attention.base import Attention, check_multiple
from zoo.model.attention.recurrent import (
    check_causal,
    chunked,
    convolve,
    exactly,
    make_decays,
    open_state,
    pick_length,
    scan_tokens,
    spread_rates,
    spread_steps,
    starts,
)
from zoo.model.norm import RMSNorm, WholeNorm
from zoo.spec import Conv, Linear, Sized, Weight, split

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights

EPS = 1e-6  # added under the square root of the L2 norm of q and k, as in the reference


class GatedDelta(Attention, kind="gated_delta"):
    """Gated DeltaNet (Yang, Kautz and Hatamizadeh, 2024; Qwen3-Next).

    q, k [G, K], v [H, V], a and b [H] and z [H, V] are projections of x. q, k and v pass a convolution and
    `activation`; q and k are L2-normalised, and q is multiplied by 1/√K. With α = exp(−exp(A_log)·softplus(a +
    dt_bias)) and β = beta_scale·σ(b),

        S ← α·S,   S ← S + k⊗(β·(v − Sᵀk)) [H, K, V],   y = Sᵀq,   out = (norm(y) ⊙ gate(z))·W_out.

    The recurrence is computed in float32.
    """

    causal: ClassVar[bool | None] = True
    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v", "z", "b", "a"),)

    n_k_heads: PositiveInt
    """Number of heads of queries and keys, G. Each serves H/G value heads."""
    n_v_heads: PositiveInt
    """Number of heads of values, H."""
    head_k_dim: PositiveInt
    """Channels K of a head's queries and keys."""
    head_v_dim: PositiveInt
    """Channels V of a head's values."""
    d_conv: PositiveInt = 4
    """Width of the causal convolution of q, k and v, in tokens."""
    conv_bias: bool = False
    """Whether the convolution has a bias."""
    activation: PlainActivation = SiLU()
    """Activation of the convolution's output."""
    beta_scale: PositiveFloat = 1.0
    """Factor of β, the strength of writing. A factor of 2 lets S change its sign along k (Grazzi et al., 2024, negative
    eigenvalues)."""
    decay: bool = True
    """Whether the state decays. If false, α is 1: the plain delta rule (Yang et al., 2024, DeltaNet)."""
    gate: PlainActivation | None = SiLU()
    """Activation of the output gate z; null for no gate (DeltaNet)."""
    norm: WholeNorm = RMSNorm(eps=1e-6)
    """Norm of each value head's output y."""
    chunk_size: PositiveInt = 64
    """Chunk length of the recurrence, in tokens; affects only speed."""

    def __post_init__(self) -> None:
        check_multiple(self, "n_v_heads", "n_k_heads")

    @property
    def d_key(self) -> int:
        return self.n_k_heads * self.head_k_dim

    @property
    def d_value(self) -> int:
        return self.n_v_heads * self.head_v_dim

    def parts(self, d_model: int) -> dict[str, Any]:
        key, value, heads = self.d_key, self.d_value, self.n_v_heads
        mixed = 2 * key + value
        rates = {
            "a": Linear(d_model, heads, precise=True),
            "dt_bias": Weight((heads,), init=spread_steps),
            "A_log": Weight((heads,), init=partial(spread_rates, low=0.0, high=16.0)),
        }
        return {
            "q": Linear(d_model, key),
            "k": Linear(d_model, key),
            "v": Linear(d_model, value),
            **({"z": Linear(d_model, value)} if self.gate else {}),
            "b": Linear(d_model, heads, precise=True),
            "conv": Conv(mixed, mixed, self.d_conv, groups=mixed, bias=self.conv_bias, segments=(key, key, value)),
            **(rates if self.decay else {}),
            "norm": Sized(self.norm, self.head_v_dim),
            "out": Linear(value, d_model, residual=True),
        }

    def shard(self, ranks: int) -> GatedDelta:
        return split(self, ranks, equal=("n_v_heads",), shared=("n_k_heads",))

    def state(self) -> dict[str, tuple[int, ...]]:
        mixed = 2 * self.d_key + self.d_value
        return {"conv": (self.d_conv - 1, mixed), "ssm": (self.n_v_heads, self.head_k_dim, self.head_v_dim)}

    def state_flops(self) -> int:
        return 6 * self.n_v_heads * self.head_k_dim * self.head_v_dim  # recalling with k, writing, reading with q

    def constant_flops(self, d_model: int, new: int, pairs: int) -> int:
        # The product of the first token with the empty state: without a decay no gradient goes to that state.
        return 0 if self.decay else 2 * self.n_v_heads * self.head_k_dim * self.head_v_dim

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        check_causal(step)
        mixed = convolve(m.conv, torch.cat((m.q(x), m.k(x), m.v(x)), -1), step)
        b, a = m.b(x), m.a(x) if self.decay else None  # B T H each
        with exactly(x):
            q, k, v = self.activation.apply(mixed).float().split([self.d_key, self.d_key, self.d_value], -1)
            v = v.unflatten(-1, (self.n_v_heads, -1))  # B T H V
            q, k = self._heads(q) * self.head_k_dim**-0.5, self._heads(k)  # B T H K
            beta = self.beta_scale * b.float().sigmoid()  # B T H
            log = torch.zeros_like(beta)
            if a is not None:
                log = -m.A_log.float().exp() * F.softplus(a.float() + m.dt_bias.float())  # B T H
            y = scan_delta(q, k, v, beta, log, step, self.chunk_size)
        y = m.norm(y.to(mixed.dtype))
        if self.gate is not None:
            y = y * self.gate.apply(m.z(x).unflatten(-1, (self.n_v_heads, -1)).float())
        return m.out(y.flatten(-2).to(mixed.dtype))  # B T D

    def _heads(self, x: Tensor) -> Tensor:
        """L2-normalise queries or keys [B, T, G·K] and repeat them for their value heads: [B, T, H, K]."""
        x = unit_length(x.unflatten(-1, (self.n_k_heads, -1)))
        return x.repeat_interleave(self.n_v_heads // self.n_k_heads, 2)


def unit_length(x: Tensor, eps: float = EPS) -> Tensor:
    """L2-normalise vectors [..., K]; `eps` is added to their squared norms."""
    return x * (x.square().sum(-1, keepdim=True) + eps).rsqrt()


def scan_delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log: Tensor, step: Step, most: int) -> Tensor:
    """Run the delta rule over tokens, in chunks of at most `most` tokens or, with the eager kernel, one by one.

    q, k [B, T, H, K], v [B, T, H, V], beta [B, T, H], all float32; log is the logarithm of the decay, [B, T, H] or, for
    a decay of each key channel, [B, T, H, K]. Returns y [B, T, H, V] and updates the step's state "ssm" [B, H, K, V].
    Padding leaves the state unchanged; a packed document starts from an empty state.
    """
    return step.along_rows(partial(_scan_delta, most), q, k, v, beta, log)


def _scan_delta(most: int, step: Step, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log: Tensor) -> Tensor:
    S = open_state(step, "ssm", v, v.shape[2], k.shape[-1], v.shape[-1])
    if step.real is not None:
        beta, log = beta * step.real[..., None], log * step.real.view(*step.real.shape, *[1] * (log.dim() - 2))
    fresh = None if step.documents is None else starts(step.documents)  # B T
    if step.kernel == "eager" or v.shape[1] == 1:
        y, S = scan_tokens(_write, q, log, S, fresh, k, v, beta[..., None])
    else:
        y, S = _scan_chunks(q, k, v, beta, log, S, fresh, pick_length(most, log))
    step.hold(ssm=S)
    return y


def _write(S: Tensor, key: Tensor, value: Tensor, much: Tensor) -> Tensor:
    """Write the part of a token's value that S does not yet recall to S, at strength `much`. S is [B·H, K, V]."""
    return torch.baddbmm(S, key.mT, (value - key @ S) * much)


def _scan_chunks(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log: Tensor, S: Tensor, fresh: Tensor | None, length: int
) -> tuple[Tensor, Tensor]:
    """Run the recurrence in chunks (Yang et al., 2024, "Parallelizing linear transformers with the delta rule").

    A token's write depends on the writes of the earlier tokens in its chunk. The writes W of a chunk solve (I + A)·W =
    β·v − β·(k decayed)·S, where A is strictly lower triangular. S is not known yet, so the system is solved for β·v and
    for β·(k decayed) separately.
    """
    tokens, decays = v.shape[1], make_decays(log, fresh, length)
    q, k, v = (chunked(each, length).transpose(2, 3) for each in (q, k, v))  # B N H L K|V
    beta = chunked(beta, length).transpose(2, 3)[..., None]  # B N H L 1
    inside, recalled = decays.compare(q, k), decays.compare(k, k)
    sides = torch.cat((beta * v, beta * decays.entering * k), -1)
    # unitriangular: the diagonal of the lower-triangular system is taken as ones.
    solved = torch.linalg.solve_triangular(beta * recalled, sides, upper=False, unitriangular=True)
    values, keys = solved.split([v.shape[-1], k.shape[-1]], -1)
    y, S = carry_chunks(values, keys, q * decays.entering, inside, (k * decays.leaving).mT, decays.across, S)
    return y.transpose(2, 3).flatten(1, 2)[:, :tokens], S  # B T H V


def carry_chunks(
    values: Tensor,
    keys: Tensor,
    reading: Tensor,
    inside: Tensor,
    writing: Tensor,
    across: Tensor,
    S: Tensor,
    added: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Carry a state S [B, H, K, V] through chunks. The tokens of a chunk write n = values − keys·S [B, N, H, L, V] and
    read reading·S + inside·n; the next state is across·S + writing·n + `added` [B, N, H, K, V], if given. Returns the
    values read [B, N, H, L, V] and the last S."""
    extra = [None] * values.shape[1] if added is None else added.unbind(1)
    each_chunk = (each.unbind(1) for each in (values, keys, reading, inside, writing, across))
    reads = []
    for value, key, read, near, write, left, more in zip(*each_chunk, extra, strict=True):
        new = value - key @ S  # B H L V
        reads.append(read @ S + near @ new)
        S = left * S + write @ new
        S = S if more is None else S + more
    return torch.stack(reads, 1), S
