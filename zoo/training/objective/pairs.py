# S tokens of a source, T of an answer
"""Objectives of pairs: an answer to each source."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.training.objective.base import Context, Objective, describe, refuse_headless
from zoo.training.objective.causal import refuse_decoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zoo.data import Batch
    from zoo.data.tokens import Collate


class Seq2Seq(Objective, kind="seq2seq"):
    """Answers, given their sources: the loss is on the answers alone (Sutskever et al., 2014).

    An encoder reads the source, a decoder writes the answer, of at most `answer_len` tokens (`seq_len` unless given).
    A decoder alone reads both in one row of `seq_len`, of which an answer may take `answer_len` (half unless given).
    """

    reads_pairs: ClassVar[bool] = True
    scored: ClassVar[str] = "tokens of the answers"

    answer_len: PositiveInt | None = None

    def refuses(self, spec: Any) -> str | None:
        if spec.kind == "encoder":
            return f"seq2seq writes answers, the model is {describe(spec)} (a decoder, or objective=mlm)"
        return refuse_decoder(self.kind, spec) if spec.kind == "decoder" else refuse_headless(self.kind, spec)

    def lay_out(self, spec: Any, seq_len: int) -> tuple[int, int]:
        """Count the tokens of a source and of an answer, at most."""
        if spec.kind != "decoder":
            return seq_len, self.answer_len or seq_len
        answer = min(self.answer_len or -(-seq_len // 2), seq_len)
        return seq_len + 1 - answer, answer

    def widths(self, spec: Any, seq_len: int, documents: bool) -> dict[str, int]:
        source, answer = self.lay_out(spec, seq_len)
        return {"": seq_len} if spec.kind == "decoder" else {"encoder": source, "decoder": answer}

    def collator(self, context: Context) -> Collate:
        start = None if context.spec.kind == "decoder" else context.spec.start_id
        widths = self.lay_out(context.spec, context.seq_len)
        eos = context.tokenizer.eos_id
        return partial(_collate_pairs, eos_id=eos, start_id=start, widths=widths)  # type: ignore[return-value]


def _collate_pairs(rows: Sequence[tuple[Sequence[int], Sequence[int]]], keys: Any, **how: Any) -> Batch:
    """Make a batch of pairs of ids: nothing in it is random."""
    from zoo.data.collate import pad_pairs

    sources, answers = zip(*rows, strict=True)
    return pad_pairs(sources, answers, **how)
