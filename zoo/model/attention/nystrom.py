# B batch, T tokens, G landmarks, H heads, C head width, W width of the convolution, D model width
"""Nyström attention: softmax attention approximated through landmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import PositiveInt

from zoo.errors import ConfigError
from zoo.kernels.packed import count_in_run, find_run_firsts
from zoo.lazy import F, Tensor, torch
from zoo.model.attention.base import PlainHeads
from zoo.spec import DrawnValues, Linear, Weight, split

if TYPE_CHECKING:
    from zoo.kernels.base import AttentionQuery
    from zoo.model.step import Step, Weights

ITERATIONS = 6
"""Number of iterations that compute the pseudo-inverse."""


class Nystrom(PlainHeads, kind="nystrom"):
    """Nyström attention (Xiong et al., 2021, Nyströmformer), for bidirectional models.

    A text is divided into `n_landmarks` segments of nearly equal length. The landmarks are the mean of each segment's
    queries and the mean of its keys. With landmarks Q~ of Q and K~ of K, softmax(QKᵀ)·V is approximated by
    softmax(QK~ᵀ) · softmax(Q~K~ᵀ)⁺ · softmax(Q~Kᵀ) · V, with scores divided by √head_dim. The pseudo-inverse of A =
    softmax(Q~K~ᵀ) is found by six iterations of Razavi et al. (2014). They start from Aᵀ divided by the largest column
    sum of A over all heads of a text (in transformers: of a batch). The cost grows with T·n_landmarks instead of T². A
    depthwise convolution of the values, with separate weights for each head, is added before the output projection o.
    """

    causal: ClassVar[bool | None] = False
    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v"),)

    n_landmarks: PositiveInt | None = 64
    """Number of a text's landmarks; a shorter text has one for each token. null for softmax attention."""
    conv_width: PositiveInt | None = 65
    """Width of the convolution, in tokens, an odd number; null for none."""
    bias: bool = True
    """Whether the projections have a bias."""

    def __post_init__(self) -> None:
        if self.conv_width is not None and self.conv_width % 2 == 0:
            raise ValueError(f"conv_width={self.conv_width} has no middle token (an odd one would do)")

    def parts(self, d_model: int) -> dict[str, Any]:
        width = self.n_heads * self.head_dim
        conv = {"conv": Weight((self.n_heads, 1, self.conv_width), init=DrawnValues(0.02))} if self.conv_width else {}
        return {
            **{name: Linear(d_model, width, self.bias) for name in ("q", "k", "v")},
            **conv,
            "o": Linear(width, d_model, self.bias, residual=True),
        }

    def shard(self, ranks: int) -> Nystrom:
        if self.n_landmarks is not None and ranks > 1:
            raise ConfigError("tp: Nyström attention compares the matrices of all heads (tp=1, or n_landmarks: null)")
        return split(self, ranks, equal=("n_heads",))

    def core_flops(self, pairs: int) -> int:
        return super().core_flops(pairs) if self.n_landmarks is None else 0

    def state_flops(self) -> int:
        return 2 * self.n_heads * self.head_dim * self.conv_width if self.conv_width else 0

    def pass_flops(self, d_model: int, new: int, held: int) -> int:
        """Count the FLOPs of `new` tokens of one text through landmarks: two means, three matrices of scores, three
        matrix products that apply these to the values from right to left, and four matrix products for each iteration
        of the pseudo-inverse."""
        if self.n_landmarks is None:
            return 0
        marks, width = min(new, self.n_landmarks), self.n_heads * self.head_dim
        inverse = 8 * ITERATIONS * self.n_heads * marks * marks * marks
        return 12 * width * new * marks + 4 * width * marks * marks + inverse

    def constant_flops(self, d_model: int, new: int, pairs: int) -> int:
        """Count the FLOPs of the two means, whose weights are constants."""
        return 0 if self.n_landmarks is None else 4 * self.n_heads * self.head_dim * new * min(new, self.n_landmarks)

    def ask(self, dtype: str, **features: Any) -> AttentionQuery | None:
        return super().ask(dtype, **features) if self.n_landmarks is None else None

    def prepare(self, m: Weights | None, step: Step) -> None:
        if self.n_landmarks is not None:
            step.extra["landmarks"] = place_landmarks(step, self.n_landmarks)

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.n_heads, self.head_dim)) for part in (m.q, m.k, m.v))  # B T H C
        if self.n_landmarks is None:
            y = step.attend_under(step.mask, q, k, v, self.head_dim**-0.5)
        else:
            q, k = q * self.head_dim**-0.25, k * self.head_dim**-0.25
            y = approximate(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), step.extra["landmarks"])
            y = y.transpose(1, 2)  # B T H C
        y = y + self._convolve(m.conv, v, step) if self.conv_width else y
        return m.o(y.flatten(-2))  # B T D

    def _convolve(self, weight: Tensor, v: Tensor, step: Step) -> Tensor:
        """Convolve values [B, T, H, C] along the tokens of their own text, by weights [H, 1, W] that channels share."""
        width = weight.shape[-1]
        side = width // 2
        if step.real is not None:
            v = v.masked_fill(~step.real[..., None, None], 0)
        if step.documents is None:
            lines = F.pad(v.permute(0, 3, 2, 1).flatten(0, 1), (side, side))  # BC H T+W-1
            convolved = F.conv1d(lines, weight.to(v.dtype), groups=self.n_heads)
            return convolved.unflatten(0, (-1, self.head_dim)).permute(0, 3, 2, 1)  # B T H C
        documents = F.pad(step.documents, (side, side), value=-1).unfold(1, width, 1)  # B T W
        windows = F.pad(v, (0, 0, 0, 0, side, side)).unfold(1, width, 1)  # B T H C W
        windows = windows.masked_fill((documents != step.documents[..., None])[:, :, None, None], 0)
        return torch.einsum("bthcw,hw->bthc", windows, weight[:, 0].to(v.dtype))


class Landmarks(NamedTuple):
    """The landmarks of each text of a row. `means` [B|1, 1, G, T] average the tokens of each landmark. `tokens` [B|1,
    1, T, G] is True for a token and a landmark of the same text, `marks` [B|1, 1, G, G] for two landmarks of the same
    text. Both are None if every row is one whole text."""

    means: Tensor
    tokens: Tensor | None
    marks: Tensor | None


def place_landmarks(step: Step, count: int) -> Landmarks:
    """Place at most `count` landmarks in each row, or in each document of a packed row. A document's landmarks are
    numbered from the index of the document's first token on."""
    places, total, documents = step.positions, step.mask.n_queries, step.documents
    assert places is not None
    if documents is not None:
        lengths = count_in_run(documents, torch.ones_like(documents, dtype=torch.bool))  # B T
        mine = places * lengths.clamp(max=count) // lengths + find_run_firsts(documents)
    elif step.real is not None:
        lengths = step.real.sum(1, keepdim=True).clamp(min=1)  # B 1
        mine = places * lengths.clamp(max=count) // lengths
    else:
        mine = places * min(count, total) // total  # B|1 T
    numbers = torch.arange(total if documents is not None else min(count, total), device=places.device)  # G
    member = mine[:, None] == numbers[:, None]  # B|1 G T
    if step.real is not None:
        member = member & step.real[:, None]
    sizes = member.sum(-1, keepdim=True)
    means = (member.float() / sizes.clamp(min=1))[:, None]
    if step.real is None and documents is None:
        return Landmarks(means, None, None)
    there = (sizes > 0).transpose(1, 2)  # B 1 G
    together = (
        there.expand(-1, total, -1) if documents is None else there & (documents[..., None] == documents[:, None])
    )
    pairs = together[:, : len(numbers)] & there.transpose(1, 2)
    real = together if step.real is None else together & step.real[..., None]
    return Landmarks(means, real[:, None], pairs[:, None])


def approximate(q: Tensor, k: Tensor, v: Tensor, landmarks: Landmarks) -> Tensor:
    """Approximate softmax(QKᵀ)·V [B, H, T, C] for q, k and v [B, H, T, C] by landmarks, in float32."""
    wide = torch.promote_types(v.dtype, torch.float32)
    q, k = q.to(wide), k.to(wide)
    means, tokens, marks = landmarks.means.to(wide), landmarks.tokens, landmarks.marks
    near_q, near_k = means @ q, means @ k  # B H G C
    first = _softmax(q @ near_k.mT, tokens)  # B H T G
    inner = _softmax(near_q @ near_k.mT, marks)  # B H G G
    last = _softmax(near_q @ k.mT, None if tokens is None else tokens.mT)  # B H G T
    read = invert(inner, marks) @ (last @ v.to(wide))
    return (first @ read).to(v.dtype)


def invert(matrices: Tensor, together: Tensor | None) -> Tensor:
    """Find the pseudo-inverse of matrices A [B, H, G, G] whose rows sum to 1, by iterating Z ← Z·(13 − AZ·(15 − AZ·(7 −
    AZ))) / 4 (Razavi et al., 2014). If A is block-diagonal, `together` [B, 1, G, G] is True within its blocks."""
    numbers = torch.arange(matrices.shape[-1], device=matrices.device)
    one = (numbers[:, None] == numbers).to(matrices.dtype)
    largest = matrices.sum(-2).max(1)[0][:, None, None]  # B 1 1 G
    if together is None:
        largest = largest.max(-1, keepdim=True)[0]
    else:
        largest = largest.masked_fill(~together, 0).max(-1, keepdim=True)[0].clamp(min=1)  # B 1 G 1
    found = matrices.mT / largest
    for _ in range(ITERATIONS):
        product = matrices @ found
        found = found @ (13 * one - product @ (15 * one - product @ (7 * one - product))) * 0.25
    return found


def _softmax(scores: Tensor, seen: Tensor | None) -> Tensor:
    """Take the softmax of scores [B, H, …] over `seen` keys; 0 for the others, and for a query that sees none."""
    if seen is None:
        return scores.softmax(-1)
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~seen, 0)
