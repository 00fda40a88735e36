# B batch, T tokens, D model width, V vocabulary
"""Heads: logits of hidden states; and poolers: one vector for a row. Heads for a task are in `task_head.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, NonNegativeInt, PositiveFloat, PositiveInt

from zoo.errors import ConfigError
from zoo.lazy import Tensor, torch
from zoo.model.activation import GELU, PlainActivation
from zoo.model.norm import LayerNorm, WholeNorm
from zoo.spec import LOGITS, Buffer, Linear, Sized, Spec, Tied, hold_whole

if TYPE_CHECKING:
    from zoo.model.step import Inputs, Weights

TABLE = "embedding.tokens"
"""The path of the weight that a tied head uses."""


class Head(Spec, axis="head", default="lm"):
    """Predict from the last hidden states."""

    predicts_tokens: ClassVar[bool] = False
    """Whether the head's logits are for tokens of the vocabulary."""
    reads_rows: ClassVar[bool] = False
    """Whether the head reads a row as a whole: one result for the row, rather than one for each token."""

    asks: ClassVar[bool] = False
    """Whether the head compares each token of a row with a question token. `mark` finds the question token, `gather`
    puts it first."""

    @property
    def n_logits(self) -> int:
        """Number of outputs for each position, or for each row if the head reads whole rows; 0 without a head."""
        raise NotImplementedError

    @property
    def reads_text(self) -> bool:
        """Whether the head is for a task: it classifies or scores a text, rather than predicting tokens or a span."""
        return self.n_logits > 0 and not self.predicts_tokens and not self.asks

    shard = hold_whole  # it is small

    def mark(self, ids: Tensor, real: Tensor | None) -> Tensor | None:
        """Mark the tokens [B, T] that `gather` pools or, if the head `asks`, the question tokens; None for all tokens.
        `real` [B, T] is False for padding."""
        return real

    def gather(self, hidden: Tensor, marked: Tensor | None) -> Tensor:
        """Select the input of `forward` from the hidden states [B, T, D]: by default all of them; for a head that reads
        rows, their pooled vector [B, 1, D]; for a head that `asks`, the question token's state, then all, [B, 1 + T,
        D]."""
        return hidden

    def forward(self, m: Weights, x: Tensor) -> Tensor | None:
        """Compute logits [..., V] from hidden states x [..., D]; None without a head."""
        raise NotImplementedError


class VocabularyHead(Head):
    """Base of the heads that know the size of the vocabulary."""

    vocab_size: PositiveInt
    """Number of tokens that have a logit."""

    @property
    def n_logits(self) -> int:
        return self.vocab_size if self.predicts_tokens else 0

    def shard(self, ranks: int) -> Head:
        """Return the head for one rank's part of the vocabulary, padded to the same size on every rank."""
        return replace(self, vocab_size=-(-self.vocab_size // ranks))


ROOT = "rsqrt_d_model"


def _number_or_root(scale: object) -> Any:
    if scale != ROOT and not (isinstance(scale, int | float) and 0 < scale < math.inf):
        raise ValueError(f"must be a finite number above 0, or {ROOT}, found {scale!r}")
    return scale


class LMHead(VocabularyHead, kind="lm"):
    """A logit for each token of the vocabulary, by a matrix that may be the token embedding's (Press and Wolf, 2016).

    An untied head may have fewer tokens than the model: the last tokens of the vocabulary are then read and never
    predicted (Swiss AI, 2026, Apertus 1.5).
    """

    predicts_tokens: ClassVar[bool] = True

    tied: bool = False
    """Whether the matrix is the token embedding's."""
    bias: bool = False
    """Whether a learned number is added to each logit."""
    scale: Annotated[float | str, BeforeValidator(_number_or_root)] = 1.0
    """Constant factor of the logits: a number, or rsqrt_d_model, 1/√d_model (T5)."""
    softcap: PositiveFloat | None = None
    """Bound c of the logits, c·tanh(l/c), after their scale (Gemma 2, 2024)."""
    offset: bool = False
    """Whether a constant is added to each logit, saved and not trained (BART's final_logits_bias)."""
    spare_rows: NonNegativeInt = 0
    """Number of further rows at the end of the matrix, which give no logit (Thinking Machines, 2026, Inkling)."""

    def __post_init__(self) -> None:
        if self.spare_rows and self.tied:
            raise ValueError("spare_rows is of a matrix of the head's own, and it has the embedding's (tied: false)")

    def shard(self, ranks: int) -> Head:
        if self.spare_rows and ranks > 1:
            raise ConfigError("tp: spare_rows stand behind the vocabulary that ranks divide (tp=1)")
        return super().shard(ranks)

    def parts(self, d_model: int) -> dict[str, Any]:
        linear = Linear(d_model, self.vocab_size + self.spare_rows, self.bias, role=LOGITS)
        return {
            "out": Tied(TABLE, linear, role=LOGITS) if self.tied else linear,
            **({"offset": Buffer((self.vocab_size,))} if self.offset else {}),
        }

    def forward(self, m: Weights, x: Tensor) -> Tensor:
        logits = m.out(x)[..., : self.vocab_size] if self.spare_rows else m.out(x)
        if self.scale != 1.0:
            logits = logits * (x.shape[-1] ** -0.5 if self.scale == ROOT else float(self.scale))
        if self.offset:
            logits = logits + m.offset.to(logits.dtype)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class MLMHead(VocabularyHead, kind="mlm"):
    """A masked token's logits: norm(act(x·W)), times the vocabulary's matrix (Devlin et al., 2018, BERT)."""

    predicts_tokens: ClassVar[bool] = True

    activation: PlainActivation = GELU()
    """Activation of x·W."""
    norm: WholeNorm | None = LayerNorm(eps=1e-12)
    """Norm before the vocabulary's matrix; null for none."""
    tied: bool = True
    """Whether the vocabulary's matrix is the token embedding's."""
    bias: bool = True
    """Whether a learned number is added to each logit."""
    transform_bias: bool = True
    """Whether the projections before the norm have a bias."""
    width: PositiveInt | None = None
    """Channels of x·W; d_model unless given (ALBERT: the embedding's width)."""
    deep: bool = False
    """Whether a second projection leads back to d_model before the norm, act(act(x·W)·V) (UltraBERT, 2026)."""
    table_width: PositiveInt | None = None
    """Width of the token table, in channels, if narrower than the norm's output: the table reads the first channels,
    and a further matrix, `rest`, reads the others (Sun et al., 2020, MobileBERT)."""

    def parts(self, d_model: int) -> dict[str, Any]:
        width = self.width or d_model
        read = d_model if self.deep else width
        first = self.table_width or read
        if self.table_width is not None and self.table_width >= read:
            raise ConfigError(f"table_width: is {first}, and the head reads {read} channels (fewer, or null for all)")
        linear = Linear(first, self.vocab_size, self.bias, role=LOGITS)
        return {
            "transform": Linear(d_model, width, self.transform_bias),
            **({"second": Linear(width, d_model, self.transform_bias)} if self.deep else {}),
            **({"norm": Sized(self.norm, read)} if self.norm else {}),
            "out": Tied(TABLE, linear, role=LOGITS) if self.tied else linear,
            **({"rest": Linear(read - first, self.vocab_size, role=LOGITS)} if self.table_width else {}),
        }

    def forward(self, m: Weights, x: Tensor) -> Tensor:
        y = self.activation.apply(m.transform(x))
        y = self.activation.apply(m.second(y)) if self.deep else y
        y = m.norm(y) if self.norm else y
        if self.table_width is None:
            return m.out(y)
        return m.out(y[..., : self.table_width]) + m.rest(y[..., self.table_width :])


class NoHead(VocabularyHead, kind="none"):
    """No head: the model returns its hidden states."""

    def forward(self, m: Weights, x: Tensor) -> None:
        return None


def can_be_tied(node: object) -> bool:
    """Whether the head of a YAML node predicts tokens, so that it can be tied. A node without a kind is of kind
    "lm"."""
    kind = Head.kinds.get(node.get("kind", Head.default)) if isinstance(node, Mapping) else None
    return kind is not None and issubclass(kind, Head) and kind.predicts_tokens


def describe_lack(head: Head) -> str:
    """Return a sentence on why a model with this head predicts no token."""
    if head.kind == "none":
        return "the model has no head"
    return f"the model's head is of kind '{head.kind}', which predicts no token"


class Pooler(Spec, axis="pooler", default="first_token"):
    """Make one vector, or logits, of a whole row."""

    def forward(self, m: Weights, x: Tensor) -> Tensor:
        """Compute a vector or logits [B, …] from hidden states x [B, T, D]."""
        raise NotImplementedError


class FirstToken(Pooler, kind="first_token"):
    """tanh(x₀·W + b) of the row's first token (Devlin et al., 2018, BERT)."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"dense": Linear(d_model, d_model, bias=True)}

    def forward(self, m: Weights, x: Tensor) -> Tensor:
        return torch.tanh(m.dense(x[:, 0]))


class FirstState(Pooler, kind="first_state"):
    """The hidden state of the row's first token, unchanged (Karpukhin et al., 2020, DPR)."""

    def forward(self, m: Weights, x: Tensor) -> Tensor:
        return x[:, 0]


class NextSentence(Pooler, kind="next_sentence"):
    """Logits of how two segments follow each other, tanh(x₀·W + b)·V + c of the first token: BERT's next sentence and
    ALBERT's sentence order (Devlin et al., 2018; Lan et al., 2019)."""

    n_classes: PositiveInt = 2
    """Number of classes: 2 for next sentence, and for sentence order."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"dense": Linear(d_model, d_model, bias=True), "relation": Linear(d_model, self.n_classes, bias=True)}

    def forward(self, m: Weights, x: Tensor) -> Tensor:
        return m.relation(torch.tanh(m.dense(x[:, 0])))


def keep_last(hidden: Tensor, inputs: Inputs) -> Tensor:
    """Take the hidden states of each row's last `logits_to_keep` real tokens [B, K, D]; all hidden states if it is
    None."""
    keep, tokens = inputs.logits_to_keep, hidden.shape[1]
    if keep is None:
        return hidden
    if inputs.counts is None or all(count == tokens for count in inputs.counts):
        return hidden[:, tokens - keep :]
    varlen = inputs.cache is not None and inputs.cache.varlen
    ends = torch.tensor(list(accumulate(inputs.counts)) if varlen else inputs.counts, device=hidden.device)[:, None]
    columns = (ends - keep + torch.arange(keep, device=hidden.device)).clamp(min=0)  # B K
    if varlen:
        return hidden[0][columns]
    return hidden.gather(1, columns[..., None].expand(-1, -1, hidden.shape[-1]))
