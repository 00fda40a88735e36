# B rows, T tokens, N labelled tokens, D model width, V vocabulary
"""Compute the loss of a head in chunks of tokens. A chunk's logits are overwritten with their gradient, which is sent
back through the head before the next chunk, so that the logits of all tokens never exist together. Losses are sums over
labelled tokens, in float32 (float64 for float64 logits)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.distributed.group import cast_for_products
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.model.step import Weights

IGNORED = -100
"""The target of an unlabelled position (torch's convention)."""

BLOCK = {"cpu": 4 << 20}
"""Bytes of float32 logits in one softmax, by type of device. On a CPU the logits should fit in its cache."""

LARGE_BLOCK = 256 << 20  # elsewhere: enough to keep the device busy


@dataclass(frozen=True)
class TokenLoss:
    """Cross-entropy with a z loss: `weight` × Σ over labelled tokens of (−log p(target) + z_loss · log²Z), Z = Σ exp
    logits (PaLM, 2022)."""

    terms: ClassVar[tuple[str, ...]] = ("loss", "z_loss")

    weight: float = 1.0
    """Factor of the sum."""
    z_loss: float = 0.0
    """Coefficient of log²Z."""
    chunk: int = 256 << 20
    """Upper bound of a chunk of logits, in bytes."""
    count: int | None = None
    """Number of labelled tokens, if known: avoids a wait for the device."""
    compiled: bool = False
    """Whether softmax, its gradient and the sums are computed in one compiled pass."""

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Factor of each term in the total."""
        return (1.0, 1.0)

    def start(self, hidden: Tensor) -> Tensor:
        """Make the initial sums, all 0, to which chunks add."""
        return torch.zeros(len(self.terms), device=hidden.device, dtype=accumulating(hidden))

    def finish(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the weighted total and terms from the sums of all chunks."""
        terms = sums * self.weight
        total = torch.zeros_like(terms[0])
        for share, term in zip(self.coefficients, terms, strict=True):
            total += share * term
        return total, terms

    def look_ahead(self, measure: Callable[[], Tensor]) -> TokenLoss:
        """Return the loss that `overwrite` is called on. `measure` computes the sums of all chunks, for a loss whose
        gradient at a token depends on other tokens."""
        return self

    def overwrite(self, logits: Tensor, targets: Tensor, rows: slice | Tensor) -> Tensor:
        """Overwrite logits [N, V] with the gradient of the total; return the sums of the terms, without the weight.
        `rows` are the places of these tokens in the batch: a slice, or a tensor of indices."""
        if self.compiled:
            return _compiled_replacement()(logits, targets, torch.tensor(self.weight), self.z_loss)
        sums = torch.zeros(2, device=logits.device, dtype=accumulating(logits))
        for block in split_for_softmax(logits):
            values, nll, log_z = self._normalise(logits[block], targets[block])
            p = self._exponentiate(values, log_z)  # from here on the block's gradient, step by step
            if self.z_loss:
                p.mul_(1 + 2 * self.z_loss * log_z)
            self._subtract_targets(p, targets[block])
            torch.mul(p, self.weight, out=logits[block])
            del values, p  # or they would exist beside the next block's
            sums += torch.stack([nll.sum(), self.z_loss * log_z.square().sum()])
        return sums

    def measure(self, logits: Tensor, targets: Tensor, rows: slice | Tensor) -> Tensor:
        """Return the sums of the terms, without the weight; the logits stay as they are."""
        sums = torch.zeros(2, device=logits.device, dtype=accumulating(logits))
        for block in split_for_softmax(logits):
            _, nll, log_z = self._normalise(logits[block], targets[block])
            sums += torch.stack([nll.sum(), self.z_loss * log_z.square().sum()])
        return sums

    def _normalise(self, block: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute of a block of logits [N, V]: the values that `_exponentiate` takes [N, V], −log p(target) [N, 1] and
        log Z [N, 1]."""
        nll, log_p, index = compute_negative_log_likelihood(block, targets)
        return log_p, nll, block.gather(1, index).to(nll.dtype) + nll  # log p = logit − log Z, at the target

    def _exponentiate(self, values: Tensor, log_z: Tensor) -> Tensor:
        """Compute the probabilities [N, V], in place."""
        return values.exp_()

    def _subtract_targets(self, p: Tensor, targets: Tensor) -> None:
        """Subtract 1 from the probability of each target, in place."""
        p.scatter_add_(1, targets[:, None], p.new_full((len(p), 1), -1.0))


@dataclass(frozen=True)
class TeacherLoss(TokenLoss):
    """Distillation loss: `weight` × Σ over labelled tokens of ((1 − mix) · −log p(target) + z_loss · log²Z + mix · t² ·
    KL(teacher ‖ student)), where the two distributions of the KL are at temperature t (Hinton et al., 2015)."""

    terms: ClassVar[tuple[str, ...]] = ("loss", "z_loss", "distil")

    teacher: Callable[[slice | Tensor], Tensor] = field(kw_only=True)
    """Function that returns the teacher's logits [N, V] for the tokens at the given places of the batch."""
    temperature: float = 1.0
    """Temperature t of the teacher's and the student's distribution in the KL."""
    mix: float = 0.5
    """Share of the teacher's term."""

    @property
    def coefficients(self) -> tuple[float, ...]:
        return (1.0 - self.mix, 1.0, self.mix)

    def overwrite(self, logits: Tensor, targets: Tensor, rows: slice | Tensor) -> Tensor:
        taught, t, hard = self.teacher(rows), self.temperature, 1 - self.mix
        sums = torch.zeros(3, device=logits.device, dtype=accumulating(logits))
        for rows in split_for_softmax(logits):
            block = logits[rows]
            nll, p, index = compute_negative_log_likelihood(block, targets[rows])
            log_z = block.gather(1, index).to(nll.dtype) + nll
            kl, soft = self._compare(block, taught[rows])
            p.exp_().mul_(hard + 2 * self.z_loss * log_z).scatter_add_(1, index, torch.full_like(nll, -hard))
            torch.mul(p.add_(soft, alpha=self.mix * t), self.weight, out=block)
            sums += torch.stack([nll.sum(), self.z_loss * log_z.square().sum(), t * t * kl])
        return sums

    def measure(self, logits: Tensor, targets: Tensor, rows: slice | Tensor) -> Tensor:
        taught, t = self.teacher(rows), self.temperature
        kl = [self._compare(logits[block], taught[block])[0] for block in split_for_softmax(logits)]
        return torch.cat([super().measure(logits, targets, rows), t * t * torch.stack(kl).sum()[None]])

    def _compare(self, logits: Tensor, taught: Tensor) -> tuple[Tensor, Tensor]:
        """Sum KL(teacher ‖ student) at temperature t over rows. Also return its gradient with respect to logits / t [N,
        V]."""
        dtype = accumulating(logits)
        student = torch.log_softmax(logits.to(dtype) / self.temperature, -1)
        teacher = torch.log_softmax(taught.to(dtype) / self.temperature, -1)
        p = teacher.exp()
        kl = (p * (teacher - student)).sum()
        return kl, student.exp_().sub_(p)


@dataclass(frozen=True)
class SquaredLoss(TokenLoss):
    """Squared error of a regression: `weight` × Σ over rows of the mean of (output − target)² over a row's C numbers.
    Targets are [N, C]."""

    terms: ClassVar[tuple[str, ...]] = ("loss",)

    @property
    def coefficients(self) -> tuple[float, ...]:
        return (1.0,)

    def overwrite(self, logits: Tensor, targets: Tensor, rows: slice | Tensor) -> Tensor:
        sums = self.measure(logits, targets, rows)
        logits.sub_(targets).mul_(2 * self.weight / logits.shape[-1])
        return sums

    def measure(self, logits: Tensor, targets: Tensor, rows: slice | Tensor) -> Tensor:
        return (logits.to(accumulating(logits)) - targets).square().mean(-1).sum()[None]


def sum_loss(head: Weights, hidden: Tensor, targets: Tensor, loss: TokenLoss) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum the loss over the labelled tokens of a batch: hidden states [B, T, D] and targets [B, T], or [B, T, C] of a
    regression.

    The head runs only on the labelled tokens. Returns the weighted total, which has a gradient to the hidden states and
    the head's weights, and its weighted terms by name, without a gradient. The term of a z loss is left out if its
    coefficient is 0.
    """
    hidden, targets = hidden.flatten(0, 1), targets.flatten(0, 1)
    loss = replace(loss, compiled=True) if head.compiles_loss else loss
    rows = find_labelled(targets, loss.count)
    targets = targets if rows is None else targets[rows]
    weights = [each for each in head.list_weights() if each.requires_grad]
    if torch.is_grad_enabled() and (weights or hidden.requires_grad):
        total, terms = _chunked_loss().apply(head, loss, hidden, targets, rows, *weights)
    else:
        total, terms = loss.finish(_measure(head, loss, hidden, targets, rows))
    return total, {name: terms[place] for place, name in enumerate(loss.terms) if name != "z_loss" or loss.z_loss}


def find_labelled(targets: Tensor, count: int | None = None) -> Tensor | None:
    """Find the indices of the labelled targets among targets [N]. `count` is their number, if known. Returns None if
    all are labelled: if `count` says so, or for targets [N, C] of a regression."""
    if count == len(targets) or targets.ndim > 1:
        return None
    kept = targets != IGNORED
    if count is None:
        return kept.nonzero()[:, 0]
    return torch.nonzero_static(kept, size=count)[:, 0]


def _measure(head: Any, loss: TokenLoss, hidden: Tensor, targets: Tensor, rows: Tensor | None) -> Tensor:
    """Compute the sums of all chunks, without gradients."""
    sums = loss.start(hidden)
    for part in split_for_head(hidden, targets, head.spec.n_logits, loss.chunk):
        places = part if rows is None else rows[part]
        sums += loss.measure(head(hidden[places]), targets[part], places).to(sums.dtype)
    return sums


@functools.cache
def _chunked_loss() -> Any:
    """Make the autograd function on first use, so that pricing a model does not import torch."""

    class ChunkedLoss(torch.autograd.Function):
        """Compute the gradients in the forward pass, chunk by chunk, for an incoming gradient of 1 (the usual
        `loss.backward()`). The backward pass multiplies them by any other incoming gradient and hands them to autograd
        without a copy, so that a second backward raises RuntimeError. With the head's `goes_back_twice` the gradients
        are kept for a second backward."""

        @staticmethod
        def forward(
            ctx: Any, head: Any, loss: TokenLoss, hidden: Tensor, targets: Tensor, rows: Tensor | None, *weights: Tensor
        ):
            loss = loss.look_ahead(lambda: _measure(head, loss, hidden, targets, rows))
            found = _Gradients(hidden if ctx.needs_input_grad[2] else None, len(weights))
            sums = loss.start(hidden)
            for part in split_for_head(hidden, targets, head.spec.n_logits, loss.chunk):
                places = part if rows is None else rows[part]
                with torch.enable_grad():
                    piece = hidden.detach()[places].requires_grad_(found.hidden is not None)
                    logits = head(cast_for_products(piece))  # autocast would keep a copy until the pass ends
                chunk = logits.detach()  # in place: autograd raises if the head saved its output
                sums += loss.overwrite(chunk, targets[part], places).to(sums.dtype)
                found.add(logits, chunk, piece, places, weights)
                del logits, chunk  # before the next chunk is made
            ctx.found, ctx.deposited = found, weights if head.deposits_gradients else ()
            ctx.goes_back_twice = head.goes_back_twice
            total, terms = loss.finish(sums)
            ctx.mark_non_differentiable(terms)
            return total, terms

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, incoming: Tensor, _: Any):  # type: ignore[override]
            if ctx.goes_back_twice:
                hidden, *made = ctx.found.multiplied(incoming)
                return (None, None, hidden, None, None, *made)
            found, ctx.found = ctx.found, None  # given away, so that autograd keeps them without a copy
            if found is None:
                raise RuntimeError("the loss went back once already, and its gradients are given away (run it again)")
            made = found.scaled(incoming)
            if ctx.deposited:
                made = [deposit(weight, each) for weight, each in zip(ctx.deposited, made, strict=True)]
            return (None, None, found.hidden, None, None, *made)

    return ChunkedLoss


def deposit(weight: Tensor, gradient: Tensor | None) -> None:
    """Add a gradient to `weight.grad` at once.

    For a tied table, autograd would keep the head's gradient until the embedding's exists, and sum both in a third
    tensor.
    """
    if gradient is not None:
        weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)


class _Gradients:
    """The gradients of a total loss: of the hidden states [N, D] (None if they need none), and of the head's
    weights."""

    def __init__(self, hidden: Tensor | None, count: int) -> None:
        self.hidden = None if hidden is None else torch.zeros_like(hidden)
        self.weights: list[Tensor | None] = [None] * count

    def add(
        self, logits: Tensor, gradient: Tensor, piece: Tensor, rows: slice | Tensor, weights: tuple[Tensor, ...]
    ) -> None:
        """Send a chunk's gradient back through the head."""
        inputs = [*([] if self.hidden is None else [piece]), *weights]
        with torch.autocast(logits.device.type, enabled=False):  # dtypes are those of the forward pass
            made = list(torch.autograd.grad(logits, inputs, gradient, allow_unused=True))
        if self.hidden is not None:
            self.hidden[rows] = made.pop(0)
        for place, each in enumerate(made):
            there = self.weights[place]
            self.weights[place] = each if there is None or each is None else there.add_(each)

    def multiplied(self, factor: Tensor) -> list[Tensor | None]:
        """Return the gradients of hidden states and weights, times `factor`, and leave the stored ones unchanged."""
        made = [self.hidden, *self.weights]
        return made if _is_one(factor) else [None if each is None else each * factor for each in made]

    def scaled(self, factor: Tensor) -> list[Tensor | None]:
        """Multiply the gradients by `factor` in place. Return the weights' gradients, and drop them from this
        object."""
        weights, self.weights = self.weights, []
        if not _is_one(factor):
            for each in (self.hidden, *weights):
                if each is not None:
                    each.mul_(factor)
        return weights


def _is_one(factor: Tensor) -> bool:
    """Whether a factor is known to be 1: False on a GPU, because reading the number would wait for the device."""
    return factor.device.type == "cpu" and float(factor) == 1


# ---------------------------------------------------------------- chunks, blocks and the softmax


def accumulating(values: Tensor) -> torch.dtype:
    """Return the dtype of softmax and sums: float32, or float64 for float64 values."""
    return torch.float64 if values.dtype is torch.float64 else torch.float32


def split_for_head(hidden: Tensor, targets: Tensor, vocab_size: int, chunk: int) -> Iterator[slice]:
    """Split labelled tokens into slices whose logits take at most `chunk` bytes, or which have one token."""
    return split_evenly(len(targets), chunk // (vocab_size * hidden.element_size()))


def split_evenly(count: int, most: int) -> Iterator[slice]:
    """Split `count` rows into slices of at most `most` rows (but one at least), whose lengths differ by at most one."""
    runs = math.ceil(count / max(most, 1))
    return (slice(count * run // runs, count * (run + 1) // runs) for run in range(runs))


def split_for_softmax(logits: Tensor) -> Iterator[slice]:
    """Split the rows of logits into blocks for the softmax."""
    size = BLOCK.get(logits.device.type, LARGE_BLOCK)
    return split_evenly(len(logits), size // (4 * logits.shape[-1]))


def compute_negative_log_likelihood(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the negative log-likelihood of the targets [N, 1], log p [N, V], and the targets' indices [N, 1]; the
    first two in float32."""
    index = targets[:, None]
    log_p = torch.log_softmax(logits, -1, dtype=accumulating(logits))
    return -log_p.gather(1, index), log_p, index


@functools.cache
def _compiled_replacement() -> Callable[..., Tensor]:
    """Return the compiled form of `TokenLoss.overwrite`. It reads each logit three times and writes it once, whereas
    separate operations read and write a block five times. `weight` is a tensor, so that it may change."""

    def replace_whole_(logits: Tensor, targets: Tensor, weight: Tensor, z_loss: float) -> Tensor:
        values = logits.to(accumulating(logits))
        log_z = values.logsumexp(-1, keepdim=True)
        nll = log_z - values.gather(1, targets[:, None])
        hot = torch.arange(values.shape[1], device=values.device) == targets[:, None]
        gradient = (values - log_z).exp() * (1 + 2 * z_loss * log_z) - hot.to(values.dtype)
        logits.copy_(gradient * weight)
        return torch.stack([nll.sum(), z_loss * log_z.square().sum()])

    return torch.compile(replace_whole_)
