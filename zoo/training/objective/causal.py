# B rows, T tokens
"""Autoregressive objectives: predict all tokens, those after a prefix, the answer to a source, or the assistant's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.model.loss import IGNORED
from zoo.training.objective.base import (
    Context,
    Objective,
    count_to_last_target,
    describe,
    refuse_headless,
    refuse_topology,
    suggest,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

    from zoo.data import Batch
    from zoo.data.tokens import Collate
    from zoo.model.tower import Topology


class NextToken(Objective, kind="next_token"):
    """Predict each token from the tokens before it (Radford et al., 2018)."""

    every_token: ClassVar[bool] = True
    scored: ClassVar[str] = "tokens"

    def refuses(self, spec: Topology) -> str | None:
        return refuse_decoder(self.kind, spec)

    def collator(self, context: Context) -> Collate:
        from zoo.data.tokens import to_next_tokens

        return partial(to_next_tokens, eos_id=context.tokenizer.eos_id, documents=context.documents)


class PrefixLM(Objective, kind="prefix_lm"):
    """Predict each token after a prefix, whose tokens see one another in both directions (Liu et al., 2018; Raffel et
    al., 2020). The length of a row's prefix is uniform from 1 to all tokens but one. With `data.documents`, a prefix's
    documents do not see one another."""

    scored: ClassVar[str] = "tokens after a prefix"

    def refuses(self, spec: Any) -> str | None:
        if reason := refuse_decoder(self.kind, spec):
            return reason
        if not spec.prefix_lm:
            return "prefix_lm needs a model that sees a prefix whole (model.prefix_lm=true, or objective=next_token)"
        for block in spec.blocks.values():
            if getattr(block, "ngrams", None):
                return "prefix_lm shows a prefix whole, and n-grams are of earlier tokens (no block.ngrams)"
            for name, each in (("attention", block.attention), ("ffn", getattr(block, "ffn", None))):
                if each is not None and each.causal and each.state():
                    found = f"'{each.kind}' layers read earlier tokens only"
                    would = "attention=gqa" if name == "attention" else "ffn=mlp"
                    return f"prefix_lm shows a prefix whole, and the {found} ({would}, or objective=next_token)"
        return None

    def collator(self, context: Context) -> Collate:
        return partial(_hide_prefix, context=context)


def _hide_prefix(rows: np.ndarray, keys: Sequence[tuple[int, int]], context: Context) -> Batch:
    """Make next-token targets of rows [B, T + 1], except inside a prefix."""
    import torch

    from zoo.data.collate import make_generator
    from zoo.data.tokens import to_next_tokens

    batch = to_next_tokens(rows, eos_id=context.tokenizer.eos_id, documents=context.documents)
    length = batch.input_ids.shape[1]
    drawn = [int(make_generator(context.seed, key).integers(1, max(length, 2))) for key in keys]
    prefix = torch.tensor(drawn)
    inside = torch.arange(length) < prefix[:, None] - 1  # the prefix's last token predicts the next
    return batch._replace(targets=batch.targets.masked_fill(inside, IGNORED), prefix=prefix)


class Seq2Seq(Objective, kind="seq2seq"):
    """Predict answers, given their sources: the loss is on the answers alone (Sutskever et al., 2014).

    An encoder reads the source; the decoder writes an answer of at most `answer_len` tokens (default: `seq_len`). A
    decoder alone reads both in one row of `seq_len` tokens; an answer takes at most `answer_len` of them (default:
    half).
    """

    reads: ClassVar[str] = "pairs"
    scored: ClassVar[str] = "tokens of the answers"

    answer_len: PositiveInt | None = None

    def refuses(self, spec: Topology) -> str | None:
        if spec.kind == "encoder":
            return f"seq2seq writes answers, the model is {describe(spec)} (a decoder, or objective=mlm)"
        return refuse_decoder(self.kind, spec) if spec.kind == "decoder" else refuse_headless(self.kind, spec)

    def lay_out(self, spec: Topology, seq_len: int) -> tuple[int, int]:
        """Return the maximum lengths of a source and of an answer, in tokens."""
        if spec.kind != "decoder":
            return seq_len, self.answer_len or seq_len
        answer = min(self.answer_len or -(-seq_len // 2), seq_len)
        return seq_len + 1 - answer, answer

    def widths(self, spec: Topology, seq_len: int, documents: bool) -> dict[str, int]:
        source, answer = self.lay_out(spec, seq_len)
        return {"": seq_len} if spec.kind == "decoder" else {"encoder": source, "decoder": answer}

    def describe_cuts(
        self, spec: Topology, tokens: Any, of: str, seq_len: int, cure: Callable[[int], str]
    ) -> Iterator[str]:
        from zoo.data.cut_rows import describe_pair_cuts

        return describe_pair_cuts(tokens, of, self.lay_out(spec, seq_len), seq_len, cure)

    def collator(self, context: Context) -> Collate:
        start = None if context.spec.kind == "decoder" else context.spec.start_id
        widths = self.lay_out(context.spec, context.seq_len)
        eos, (before, after) = context.tokenizer.eos_id, context.tokenizer.around
        how = {"eos_id": eos, "start_id": start, "widths": widths, "opening": len(before)}
        if start is not None:  # a decoder of its own writes an answer as a text of its own
            how["around"] = (before, after[:-1] if after[-1:] == [eos] else after)
        return partial(_collate_pairs, **how)  # type: ignore[return-value]


def _collate_pairs(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    keys: Any,
    *,
    around: tuple[list[int], list[int]] = ([], []),
    **how: Any,
) -> Batch:
    """Make a batch of pairs of ids, each answer with the tokens `around` it. `keys` are unused, because nothing is
    random."""
    from zoo.data.collate import pad_pairs

    sources, answers = zip(*rows, strict=True)
    return pad_pairs(sources, [[*around[0], *answer, *around[1]] for answer in answers], **how)


class Chat(Objective, kind="chat"):
    """Predict the assistant's answers, given the conversation before each (supervised fine-tuning; Ouyang et al.,
    2022): next-token loss on the tokens of answers alone. The data has a `data.form`."""

    reads: ClassVar[str] = "conversations"
    scored: ClassVar[str] = "tokens of the assistant's answers"

    def refuses(self, spec: Topology) -> str | None:
        if spec.kind != "decoder":
            return f"chat is learned by a decoder, the model is {describe(spec)} (a decoder)"
        return refuse_decoder(self.kind, spec)

    def collator(self, context: Context) -> Collate:
        from zoo.data.chat.conversation_rows import collate_turns

        how = {"eos_id": context.tokenizer.eos_id, "seq_len": context.seq_len, "packed": context.documents}
        return partial(collate_turns, **how)

    def count_tokens(self, batch: Batch, seq_len: int) -> int:
        return count_to_last_target(batch)


def refuse_decoder(name: str, spec: Any) -> str | None:
    """Return the reason why an autoregressive objective cannot train a model: it is not a decoder, reads an encoder's
    output, or has no head that predicts tokens. None if it can."""
    if reason := refuse_topology(name, spec, "decoder", suggest(spec)):
        return reason
    if spec.reads_memory:
        return f"{name} gives no encoder's output to read, and the model's layers read one (no block.cross)"
    return refuse_headless(name, spec)
