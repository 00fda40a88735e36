# B rows, T tokens, D model width, C classes or values
"""Heads for a task (classes or numbers for a row, classes for each token, replaced tokens), and pooling of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, NonNegativeInt, PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.activation import PlainActivation
from zoo.model.head import Head
from zoo.model.norm import WholeNorm
from zoo.spec import ROW, Linear, Sized

if TYPE_CHECKING:
    from zoo.model.step import Weights

Pooling = Literal["cls", "mean", "last"]
"""How the vectors of a row's tokens become one: the first, the mean or the last, padding left out."""


def spell_label(value: object) -> str | None:
    """Return the class name of a label: a string as it is, "3" for 3, "true" for true; None for anything else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int) else None


def name_classes(value: object) -> Any:
    """Return the names of classes as a tuple of strings. A number n stands for n names, "0" to "n-1". Raises ValueError
    unless there are two names at least, all different."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = range(value)
    if not isinstance(value, list | tuple | range):
        raise ValueError(f"must be names of classes, or how many there are, found {value!r} ([spam, ham], or 2)")
    names = [spell_label(each) for each in value]
    if None in names or len(set(names)) < len(names):
        odd = next(each for each, name in zip(value, names, strict=True) if name is None or names.count(name) > 1)
        raise ValueError(f"must be names that differ, found {odd!r} (strings, each once)")
    if len(names) < 2:
        raise ValueError(f"must be two classes at least, found {len(names)} ([spam, ham], or 2)")
    return tuple(names)


ClassNames = Annotated[
    tuple[str, ...], BeforeValidator(name_classes, json_schema_input_type=int | tuple[str | int | bool, ...])
]


class TaskHead(Head):
    """Base of the heads for a task: norm(act(x·W + b))·V + c."""

    activation: PlainActivation | None = None
    """Activation of the first projection x·W + b; null to leave out this projection."""
    norm: WholeNorm | None = None
    """Norm after the first projection's activation (ModernBERT); null for none."""
    bias: bool = True
    """Whether the projections have a bias; `transform_bias`, if given, decides for the first one."""
    transform_bias: bool | None = None
    """Whether the first projection has a bias; the value of `bias` unless given."""

    def __post_init__(self) -> None:
        idle = [name for name in ("norm", "transform_bias") if getattr(self, name) is not None]
        if idle and self.activation is None:
            raise ValueError(
                f"{idle[0]} is of the first product, and there is none (give `activation`, or leave it out)"
            )

    def parts(self, d_model: int) -> dict[str, Any]:
        bias = self.bias if self.transform_bias is None else self.transform_bias
        return {
            **({} if self.activation is None else {"transform": Linear(d_model, d_model, bias)}),
            **({} if self.norm is None else {"norm": Sized(self.norm, d_model)}),
            "out": Linear(d_model, self.n_logits, self.bias),
        }

    def forward(self, m: Weights, x: Tensor) -> Tensor:
        """Compute logits [..., C] of vectors [..., D], of rows or of tokens."""
        x = x if self.activation is None else self.activation.apply(m.transform(x))
        return m.out(x if self.norm is None else m.norm(x))


class RowHead(TaskHead):
    """Base of the heads that read a row as a whole."""

    reads_rows: ClassVar[bool] = True

    pooling: Pooling = "cls"
    """How the vectors of a row's tokens become one: cls, the first; mean; or last. Padding is left out."""
    skip_id: NonNegativeInt | None = None
    """Token id that is not pooled: transformers' decoders skip the padding id, even if it is also a row's end of
    text."""

    def mark(self, ids: Tensor, real: Tensor | None) -> Tensor | None:
        if self.skip_id is None:
            return real
        read = ids != self.skip_id
        return read if real is None else real & read

    def gather(self, hidden: Tensor, marked: Tensor | None) -> Tensor:
        return pool(hidden, marked, self.pooling)[:, None]  # B 1 D


class SequenceHead(RowHead, kind="sequence"):
    """A logit for each class of a row. BERT reads the first token, by two projections with a tanh between them (Devlin
    et al., 2018, §4.1). Decoders read the last token, by one projection (Radford et al., 2018)."""

    labels: ClassNames
    """Names of the classes, or their number."""

    @property
    def n_logits(self) -> int:
        return len(self.labels)


class RegressionHead(RowHead, kind="regression"):
    """Numbers for a row (BERT on STS-B; Devlin et al., 2018)."""

    n_outputs: PositiveInt = 1
    """Number of outputs for a row."""

    @property
    def n_logits(self) -> int:
        return self.n_outputs


class TokenHead(TaskHead, kind="token"):
    """A logit for each class of each token (Devlin et al., 2018, §5.3)."""

    labels: ClassNames
    """Names of the classes, or their number."""

    @property
    def n_logits(self) -> int:
        return len(self.labels)


class ReplacedHead(TaskHead, kind="replaced"):
    """A logit for each token, above 0 if the token was replaced (Clark et al., 2020, ELECTRA's discriminator)."""

    @property
    def n_logits(self) -> int:
        return 1


class SpanHead(Head, kind="question_span"):
    """Question-aware span selection (Ram et al., 2021, Splinter): two logits for each token, for starting and for
    ending the answer to the row's question token. In a row without a question token, the first token is the question.

    There are four transforms fᵢ(x) = norm(act(x·Wᵢ + bᵢ)). The start logit is (f₁(q)·V)ᵀ f₂(x), with the question
    token's vector q and the token's vector x; the end logit has f₃, f₄ and a V of its own.
    """

    asks: ClassVar[bool] = True

    question_id: NonNegativeInt
    """Id of the question token. The first one of a row is used."""
    activation: PlainActivation
    """Activation of the transforms f."""
    norm: WholeNorm
    """Norm of the outputs of the transforms f."""

    @property
    def n_logits(self) -> int:
        return 2

    def parts(self, d_model: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for end in ("start", "end"):
            made |= {
                f"query_{end}": Linear(d_model, d_model, True, role=ROW),
                f"query_{end}_norm": Sized(self.norm, d_model),
                end: Linear(d_model, d_model, True),
                f"{end}_norm": Sized(self.norm, d_model),
                f"{end}_out": Linear(d_model, d_model, role=ROW),
            }
        return made

    def mark(self, ids: Tensor, real: Tensor | None) -> Tensor:
        asked = ids == self.question_id
        return asked if real is None else asked & real

    def gather(self, hidden: Tensor, marked: Tensor | None) -> Tensor:
        assert marked is not None
        places = marked.long().argmax(1)[:, None, None].expand(-1, 1, hidden.shape[-1])  # the first of equals
        return torch.cat((hidden.gather(1, places), hidden), 1)  # B 1+T D

    def forward(self, m: Weights, x: Tensor) -> Tensor:
        """Compute logits [B, T, 2] from vectors [B, 1 + T, D]: the question's vector, then the vectors of all
        tokens."""
        asked, x = x[:, :1], x[:, 1:]
        found = []
        for name in ("start", "end"):
            query = getattr(m, f"{name}_out")(self._turn(m, f"query_{name}", asked))  # B 1 D
            found.append((query * self._turn(m, name, x)).sum(-1))
        return torch.stack(found, -1)

    def _turn(self, m: Weights, name: str, x: Tensor) -> Tensor:
        return getattr(m, f"{name}_norm")(self.activation.apply(getattr(m, name)(x)))


def pool(hidden: Tensor, real: Tensor | None, pooling: Pooling) -> Tensor:
    """Pool the hidden states of rows [B, T, D] to a vector each [B, D]. `real` [B, T] is False for padding, which may
    stand on either side; None if there is no padding.

    Example: of a row whose tokens are (pad, a, b, pad), `cls` is a, `last` is b, and `mean` (a + b) / 2.
    """
    if real is None:
        return hidden.mean(1) if pooling == "mean" else hidden[:, 0 if pooling == "cls" else -1]
    if pooling == "mean":
        weights = real[..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)
    places = real.long() if pooling == "cls" else real.long().cumsum(1)
    rows = torch.arange(hidden.shape[0], device=hidden.device)  # torch.export would take len() for a constant
    return hidden[rows, places.argmax(1)]  # argmax takes the first of equals
