# B batch, T tokens, W convolution width, C channels, N chunks, L chunk length, H heads, K key width
"""Helpers of recurrent mixers: a causal convolution with a state, chunks and their decays, scans, initial rates.

A recurrent mixer reads earlier tokens through a state of fixed size. Padding leaves a state unchanged, and a packed
document starts from an empty one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.errors import ConfigError
from zoo.kernels.blocks import round_to_power
from zoo.kernels.running_sums import NOTHING
from zoo.lazy import F, Tensor, torch

if TYPE_CHECKING:
    from zoo.model.step import Step


def check_causal(step: Step, where: str = "attention") -> None:
    """Raise ConfigError if the mask lets tokens see later ones: a recurrent mixer reads earlier tokens only. `where`
    names the component in the message."""
    mask = step.mask
    if mask is not None and (not mask.causal or mask.prefix is not None):
        found = "a mask that shows tokens on both sides" if not mask.causal else "a prefix that is seen whole"
        would = "use gqa there" if where == "attention" else "use mlp there"
        raise ConfigError(f"{where}: a recurrent mixer reads earlier tokens only, found {found} ({would})")


def check_width(stated: int, d_model: int) -> None:
    """Raises ValueError if `stated`, a mixer's field `d_model`, differs from the stream's width `d_model`."""
    if d_model != stated:
        raise ValueError(f"d_model={stated}, where the stream is {d_model} wide (give it that)")


def exactly(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context without autocast on x's device. States sum over thousands of tokens, and so need float32."""
    kind = x.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)  # no autocast for meta


def starts(documents: Tensor) -> Tensor:
    """Mark the first tokens of packed documents [B, T] with True. A row's first token is not marked: it continues from
    the state."""
    new = documents[:, 1:] != documents[:, :-1]
    return F.pad(new, (1, 0))  # B T


# ---------------------------------------------------------------- the short convolution


def convolve(
    conv: Any,
    x: Tensor,
    step: Step,
    name: str = "conv",
    shift: Tensor | None = None,
    dilation: int = 1,
    taps: Tensor | None = None,
) -> Tensor:
    """Convolve x [B, T, C] causally, after the (W − 1)·dilation earlier inputs in the state `name`; updates the state.
    `shift` [C] is added to every input, also to the zeros before a text. `taps` [B, T, H, W] are each token's own
    additions to the convolution's weights: the first tap for the token itself, the last for the token W − 1 before it.
    The channels of each of H equal groups share their taps.

    A real token reads the real tokens before it in its own document. Padding is skipped wherever it stands; the outputs
    at padding have no meaning.
    """
    if conv.weight.shape[-1] == 1 and taps is None:
        return conv(x if shift is None else x + shift)
    work = partial(_convolve, conv, name, shift, dilation)
    return step.along_rows(work, x) if taps is None else step.along_rows(work, x, taps)


def _convolve(
    conv: Any, name: str, shift: Tensor | None, dilation: int, step: Step, x: Tensor, taps: Tensor | None = None
) -> Tensor:
    width = conv.weight.shape[-1]
    history = join_earlier(x, step, name, (width - 1) * dilation)
    if history.segments is None:
        y = conv(history.joined if shift is None else history.joined + shift)
        return history.restore(y if taps is None else y + history.mix(taps))
    y: Any = 0 if taps is None else history.mix(taps)
    for tap in range(width):
        read, weight = history.look_back((width - 1 - tap) * dilation), conv.weight[..., tap].to(x.dtype)
        read = read if shift is None else read + shift
        if weight.shape[1] == 1:
            y = y + read * weight[:, 0]
        else:  # channels of a group are mixed
            y = y + F.conv1d(read.mT, weight[..., None], groups=conv.groups).mT
    return history.restore(y if conv.bias is None else y + conv.bias.to(x.dtype))


class History(NamedTuple):
    """Real tokens of rows in order, after P earlier ones and before padding: `joined` [B, P + T, C], where T is
    `tokens`. `segments` [B, T] number packed documents; None if rows are not packed. `order` [B, T] is the place of
    each token in its row; None if there is no padding."""

    joined: Tensor
    tokens: int
    segments: Tensor | None
    order: Tensor | None

    def look_back(self, distance: int) -> Tensor:
        """Get the token `distance` before each token [B, T, C]: 0 if it belongs to another document."""
        start = self.joined.shape[1] - self.tokens - distance
        found = self.joined[:, start : start + self.tokens]
        if self.segments is None:
            return found
        around = F.pad(self.segments, (distance, 0))[:, : self.tokens]  # the state belongs to the first document
        return found * (around == self.segments)[..., None]

    def mix(self, taps: Tensor) -> Tensor:
        """Sum each token and the W − 1 tokens before it, weighted by the token's taps [B, T, H, W]: [B, T, C]."""
        taps = taps if self.order is None else _take(taps.flatten(2), self.order).unflatten(2, taps.shape[2:])
        y: Any = 0
        for distance in range(taps.shape[3]):
            read = self.look_back(distance).unflatten(-1, (taps.shape[2], -1))  # B T H C/H
            y = y + read * taps[..., distance, None]
        return y.flatten(2)

    def restore(self, y: Tensor) -> Tensor:
        """Put the outputs [B, T, C] of tokens back where the tokens stand in the rows."""
        return y if self.order is None else _take(y, self.order.argsort(1))


def join_earlier(x: Tensor, step: Step, name: str, before: int) -> History:
    """Append the real tokens of x [B, T, C] to the last `before` ones, which the state `name` holds; updates the state.
    Padding is moved to the end of its row."""
    held = step.state(name)
    held = x.new_zeros(x.shape[0], before, x.shape[-1]) if held is None else held.to(x.dtype)  # B P C
    segments = None if step.documents is None else starts(step.documents).cumsum(1)  # B T
    tokens = x.shape[1]
    if step.real is None:
        joined = torch.cat((held, x), 1)
        step.hold(**{name: joined[:, tokens:]})
        return History(joined, tokens, segments, None)
    order = step.real.logical_not().int().argsort(dim=1, stable=True)  # B T: real tokens first, as they come
    joined = torch.cat((held, _take(x, order)), 1)
    last = step.real.sum(1, keepdim=True) + torch.arange(before, device=x.device)  # B P
    step.hold(**{name: _take(joined, last)})
    return History(joined, tokens, None if segments is None else segments.gather(1, order), order)


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def shift_tokens(x: Tensor, step: Step, name: str) -> Tensor:
    """Token shift (Peng et al., 2023): replace each real token of x [B, T, D] by the real one before it. A row's first
    token gets the token in the state `name` [B, D], or 0; a document's first token gets 0. Updates the state."""
    return step.along_rows(partial(_shift_tokens, name), x)


def _shift_tokens(name: str, step: Step, x: Tensor) -> Tensor:
    held = step.state(name)
    held = x.new_zeros(x.shape[0], x.shape[-1]) if held is None else held.to(x.dtype)
    fresh = None if step.documents is None else starts(step.documents)  # B T
    if step.real is None:
        before = torch.cat((held[:, None], x[:, :-1]), 1)
        step.hold(**{name: x[:, -1]})
        return before if fresh is None else before * ~fresh[..., None]
    joined = torch.cat((held[:, None], x), 1)  # B 1+T D
    place = torch.arange(1, x.shape[1] + 1, device=x.device)  # T: of each token in `joined`
    last = torch.where(step.real, place, 0).cummax(1).values  # B T: of the last real token so far
    step.hold(**{name: _take(joined, last[:, -1:])[:, 0]})
    last = F.pad(last[:, :-1], (1, 0))
    before = _take(joined, last)
    if fresh is None:
        return before
    return before * (last >= torch.where(fresh, place, 0).cummax(1).values)[..., None]


# ---------------------------------------------------------------- chunks


def chunked(x: Tensor, length: int) -> Tensor:
    """Cut [B, T, …] into chunks [B, N, L, …]. The last chunk is padded with zeros; as log decays or inputs they change
    nothing."""
    short = -x.shape[1] % length
    if short:
        x = torch.cat((x, x.new_zeros(x.shape[0], short, *x.shape[2:])), 1)
    return x.unflatten(1, (-1, length))


class Decays:
    """Decays within chunks: the factor by which a token's contribution has decayed when a later token reads it. `log`
    [B, N, L, H], ≤ 0, is the logarithm of each token's own decay.

    `pairs` [B, N, H, L, L] is the decay from a token (column) to a later one (row). It is 1 on the diagonal, and 0 if
    the row's token is earlier than the column's or of another document. `entering` [B, N, H, L, 1] is the decay from
    before the chunk to a token, `leaving` [B, N, H, L, 1] the decay from a token to the chunk's end. `fresh` [B, N, L]
    marks the first tokens of documents: no contribution of an earlier token reaches them.

    Each span of tokens is summed separately. Differences of one running sum would lose a span's small decay next to
    large earlier ones; documents are separated by a mask for the same reason.
    """

    def __init__(self, log: Tensor, fresh: Tensor | None) -> None:
        log = log.transpose(2, 3)  # B N H L
        length = log.shape[-1]
        later = torch.ones(length, length, dtype=torch.bool, device=log.device).tril(-1)  # L L: row after column
        spans = log[..., None].expand(*log.shape, length).masked_fill(~later, 0.0).cumsum(-2)  # B N H L L
        shown = later | torch.eye(length, dtype=torch.bool, device=log.device)
        self.entering = log.cumsum(-1).exp()[..., None]
        if fresh is not None:
            segments = fresh.cumsum(-1)  # B N L
            same = segments[..., :, None] == segments[..., None, :]
            shown = shown & same[:, :, None]
            self.entering = self.entering * (segments == 0)[:, :, None, :, None]
        self.pairs = spans.masked_fill(~shown, -math.inf).exp()
        self.leaving = self.pairs[..., -1, :, None]

    def compare(self, reads: Tensor, keys: Tensor) -> Tensor:
        """Compute Σ_c reads[i, c]·keys[j, c]·(decay from token j to token i), 0 for j > i: reads, keys [B, N, H, L, K]
        → [B, N, H, L, L]."""
        return (reads @ keys.mT) * self.pairs

    @property
    def across(self) -> Tensor:
        """The decay from before a chunk to its end [B, N, H, 1 or K, 1]."""
        return self.entering[..., -1, :, None]


class ChannelDecays(Decays):
    """Decays within chunks, one for each of K channels. `log` [B, N, L, H, K], ≤ 0; L is a power of two.

    `entering` and `leaving` are [B, N, H, L, K]. `compare` needs no `pairs`, which would be K times as large.
    """

    def __init__(self, log: Tensor, fresh: Tensor | None) -> None:
        self.log = log.transpose(2, 3)  # B N H L K
        self.entering, self.leaving = self.log.cumsum(-2).exp(), _left_after(self.log)
        self.same: Tensor | None = None
        if fresh is not None:
            segments = fresh.cumsum(-1)[:, :, None]  # B N 1 L
            self.same = segments[..., :, None] == segments[..., None, :]  # B N 1 L L
            self.entering = self.entering * (segments == 0)[..., None]
            self.leaving = self.leaving * self.same[..., -1, :, None]

    def compare(self, reads: Tensor, keys: Tensor) -> Tensor:
        """Compute Σ_c as in Decays.compare, with a decay for each channel c.

        Blocks of 2, 4, … L tokens are assembled from two halves. A pair across the middle decays from j to the middle,
        then from there to i: two factors ≤ 1, so that nothing overflows (exp(G_i)·exp(−G_j) would).
        """
        found = (reads * keys).sum(-1)[..., None, None]  # B N H L 1 1: blocks of one token
        while found.shape[-3] > 1:
            half = found.shape[-1]
            (_, later), (before, _), (earlier, after) = (
                each.unflatten(-2, (-1, 2, half)).unbind(-3) for each in (reads, keys, self.log)
            )  # B N H blocks half K each
            across = (later * after.cumsum(-2).exp()) @ (before * _left_after(earlier)).mT
            first, second = found.unflatten(-3, (-1, 2)).unbind(-3)
            upper = torch.cat((first, torch.zeros_like(across)), -1)
            found = torch.cat((upper, torch.cat((across, second), -1)), -2)
        found = found.squeeze(-3)
        return found if self.same is None else found * self.same


def _left_after(log: Tensor) -> Tensor:
    """Compute the decay from each token to the end of its chunk [.., L, K]: the product of the later tokens' decays."""
    return F.pad(log[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2).exp()


def make_decays(log: Tensor, fresh: Tensor | None, length: int) -> Decays:
    """Make the decays within chunks of `length` tokens. log is [B, T, H] (of heads) or [B, T, H, K] (of channels);
    fresh [B, T] marks the first tokens of documents."""
    made = ChannelDecays if log.dim() == 4 else Decays
    return made(chunked(log, length), None if fresh is None else chunked(fresh, length))


def check_chunk_size(chunk_size: int) -> None:
    """Raises ValueError if a chunk's length is not a power of two."""
    if chunk_size & (chunk_size - 1):
        raise ValueError(f"chunk_size={chunk_size} is not a power of two ({1 << chunk_size.bit_length()} is)")


def pick_length(most: int, log: Tensor) -> int:
    """Choose the length of chunks: `most`, or less if all tokens of log [B, T, H] fit in one chunk. For log [B, T, H,
    K], a decay of each channel, `most` and the length are powers of two."""
    tokens = log.shape[1]
    return min(most, tokens if log.dim() == 3 else round_to_power(tokens))


def open_state(step: Step, name: str, like: Tensor, *shape: int) -> Tensor:
    """Get the state `name` [B, *shape]. Before the first token it is zeros, of the batch size, dtype and device of
    `like`."""
    held = step.state(name)
    return like.new_zeros(like.shape[0], *shape) if held is None else held


def scan_tokens(
    write: Callable[..., Tensor], read: Tensor, log: Tensor, S: Tensor, fresh: Tensor | None, *rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Run S ← write(exp(log)·S, *row), y = Sᵀ·read token by token. read and `rows` are [B, T, H, …]; `write` gets one
    token's part of each of `rows`, [B·H, 1, …]. log is [B, T, H] or [B, T, H, K], S [B, H, K, V]. Returns y [B, T, H,
    V] and the last S."""
    left = (log if log.dim() == 4 else log[..., None]).exp()
    left = left if fresh is None else left * ~fresh[..., None, None]  # B T H 1|K
    shape, S, reads = S.shape, S.flatten(0, 1), []  # B·H K V
    tokens = (each.transpose(1, 2).flatten(0, 1)[:, :, None].unbind(1) for each in (read, left, *rows))
    for query, kept, *written in zip(*tokens, strict=True):
        S = write(S * kept.mT, *written)
        reads.append(query @ S)
    y = torch.stack(reads, 1).view(*shape[:2], read.shape[1], shape[-1])  # B H T V
    return y.transpose(1, 2), S.view(shape)


# ---------------------------------------------------------------- a state without a matrix


def scan_channels(decay: Tensor, new: Tensor, h: Tensor, length: int) -> Tensor:
    """Compute h_t = decay_t ⊙ h_{t−1} + new_t for all t: decay, new [B, T, …], h [B, …] before them → [B, T, …].

    Rows of `length` tokens are scanned in parallel from empty states. Then the state before each row is computed from
    the earlier rows, and added, decayed, to the row's states: length + T/length sequential steps. Only products of
    decays (≤ 1) occur, so the result is exact for any decay, even 0. A length of 1 goes token by token.
    """
    if length == 1:
        states = []
        for now, added in zip(decay.unbind(1), new.unbind(1), strict=True):
            h = torch.addcmul(added, now, h)
            states.append(h)
        return torch.stack(states, 1)
    tokens = decay.shape[1]
    short = -tokens % length
    if short:
        decay = torch.cat((decay, decay.new_ones(decay.shape[0], short, *decay.shape[2:])), 1)
        new = torch.cat((new, new.new_zeros(new.shape[0], short, *new.shape[2:])), 1)
    decay, new = decay.unflatten(1, (-1, length)), new.unflatten(1, (-1, length))  # B rows length …
    (first, *decays), (start, *news) = decay.unbind(2), new.unbind(2)  # B rows … each
    local, left = [start], [first]
    for now, added in zip(decays, news, strict=True):
        local.append(torch.addcmul(added, now, local[-1]))
        left.append(now * left[-1])
    entering = []
    for now, added in zip(left[-1].unbind(1), local[-1].unbind(1), strict=True):
        entering.append(h)
        h = torch.addcmul(added, now, h)
    entered = torch.stack(entering, 1)[:, :, None]  # B rows 1 …
    return torch.addcmul(torch.stack(local, 2), torch.stack(left, 2), entered).flatten(1, 2)[:, :tokens]


def find_running_maximum(new: Tensor, log: Tensor, held: Tensor) -> Tensor:
    """Compute m_t = max(m_{t−1} + log_t, new_t) for all t: new, log [B, T, …], held [B, …] before them → [B, T, …].

    Subtracted from exponents, m prevents overflow (a log-sum-exp's stabiliser). It cancels out of the result and so has
    no gradient. Windows of 1, 2, 4, … tokens are combined in turn.
    """
    if new.shape[1] == 1:
        return torch.maximum(new, held[:, None] + log).detach()
    new, left = torch.cat((held[:, None], new), 1).detach(), F.pad(log.detach(), _front(log, 1))
    width = 1
    while width < new.shape[1]:
        new = torch.maximum(new, F.pad(new[:, :-width], _front(new, width), value=NOTHING) + left)
        left = left + F.pad(left[:, :-width], _front(left, width))
        width *= 2
    return new[:, 1:]


def _front(x: Tensor, count: int) -> tuple[int, ...]:
    """Return the argument of `F.pad` that pads `count` places before the first token of x [B, T, …]."""
    return (*[0] * (2 * (x.dim() - 2)), count, 0)


# ---------------------------------------------------------------- where rates start


def spread_rates(tensor: Tensor, low: float, high: float) -> None:
    """Fill A_log with the logarithms of rates spread evenly over (low, high).

    The papers draw them at random; an even spread has the same distribution and needs no generator.
    """
    places = (torch.arange(tensor.shape[0], device=tensor.device) + 0.5) / tensor.shape[0]
    tensor.copy_((low + (high - low) * places).log())


def spread_steps(tensor: Tensor, low: float = 1e-3, high: float = 0.1) -> None:
    """Fill dt_bias so that softplus(dt_bias) is spread log-evenly over (low, high) (Gu and Dao, 2023).

    The values are in the order of multiples of the golden ratio modulo 1. In order of size, the steps would grow
    together with the rates of `spread_rates` from head to head.
    """
    places = ((torch.arange(tensor.shape[0], device=tensor.device) + 0.5) * 0.6180339887).frac()
    step = (math.log(low) + (math.log(high) - math.log(low)) * places).exp()
    tensor.copy_(step + (-torch.expm1(-step)).log())  # the inverse of softplus
