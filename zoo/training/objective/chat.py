"""Learn the assistant's answers in conversations."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

from zoo.training.objective.base import Context, Objective, count_to_last_target, describe
from zoo.training.objective.causal import refuse_decoder

if TYPE_CHECKING:
    from zoo.data import Batch
    from zoo.data.tokens import Collate
    from zoo.model.tower import Topology


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
