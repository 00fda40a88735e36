# S input tokens, T target tokens
"""Base of the denoising objectives, in which a model reads a corrupted text and writes the missing or whole text."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.training.objective.base import Context, Objective, refuse_headless, refuse_topology, suggest
from zoo.training.objective.causal import refuse_decoder

if TYPE_CHECKING:
    from zoo.data.collate import Corrupt
    from zoo.data.tokens import Collate
    from zoo.model.tower import Topology

ROOM = 16
"""With `data.documents`, a row keeps room for ends of text: 1/16 of its tokens."""


class Rewriting(Objective):
    """Base of the denoising objectives. A row of text is corrupted as a whole, or each of its documents separately. All
    batches of a run have the same shape.

    An encoder reads the corrupted text and a decoder writes the targets. A decoder alone reads the text and writes the
    targets in the same row (Tay et al., 2022, §3.3.1); a prefix LM attends to the text in both directions.
    """

    scored: ClassVar[str] = "tokens that are restored"

    def refuses(self, spec: Topology) -> str | None:
        if spec.kind == "decoder":
            return refuse_decoder(self.kind, spec)
        reason = refuse_topology(self.kind, spec, "encoder_decoder", suggest(spec))
        return reason or refuse_headless(self.kind, spec)

    def refuses_documents(self, spec: Any) -> str | None:
        if spec.kind == "decoder" and spec.prefix_lm:
            return f"is true, and a row has one prefix, which {self.kind} needs for each (data.documents=false)"
        return None

    def widths(self, spec: Topology, seq_len: int, documents: bool) -> dict[str, int]:
        _, *widths = self.lay_out(spec, seq_len, documents)
        return dict(zip(spec.towers(), widths, strict=True))

    def lay_out(self, spec: Topology, seq_len: int, documents: bool) -> tuple[int, ...]:
        """Return the number of text tokens in a row (as many as fit rows of `seq_len`), and the length of each tower's
        row."""
        room = max(seq_len // ROOM, 1) if documents else 0
        if spec.kind == "decoder":
            lengths = range(2, seq_len + 1)
            fitting = bisect_right(lengths, seq_len - room, key=self.measure_row)
            length = lengths[max(fitting - 1, 0)]
            return length, self.measure_row(length) + room
        source, target = self.measure(seq_len - room)
        spare = max(source, target) + room - seq_len  # targets of the whole text have one more token, the EOS
        length = max(seq_len - room - max(spare, 0), 2)
        source, target = self.measure(length)
        return length, source + room, target + room

    def measure(self, length: int) -> tuple[int, int]:
        """Return the maximum numbers of input tokens and of targets made from `length` tokens."""
        sizes = self.list_sizes(length)
        return max(source for source, _ in sizes), max(target for _, target in sizes)

    def measure_row(self, length: int) -> int:
        """Return the length of a row with inputs and targets, without the last token, which is a target only."""
        return max(source + target for source, target in self.list_sizes(length)) - 1

    def list_sizes(self, length: int) -> list[tuple[int, int]]:
        """List the numbers of input tokens and targets made from `length` tokens, for each kind of corruption."""
        raise NotImplementedError

    def corrupter(self, context: Context) -> Corrupt:
        """Make the function that corrupts a run of tokens."""
        raise NotImplementedError

    def collator(self, context: Context) -> Collate:
        from zoo.data.collate import Continued, Rewritten

        spec = context.spec
        length, *widths = self.lay_out(spec, context.seq_len, context.documents)
        common = (self.corrupter(context), context.seed, context.tokenizer.eos_id, length, context.documents)
        if spec.kind == "decoder":
            return Continued(*common, width=widths[0], prefixed=spec.prefix_lm)
        padded = len(self.list_sizes(length)) > 1  # corrupted runs differ in length
        return Rewritten(*common, start_id=spec.start_id, widths=(widths[0], widths[1]), padded=padded)
