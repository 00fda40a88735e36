"""Training objectives by kind: the model's inputs, its targets, and the loss."""

from typing import Any

from zoo.training.objective.base import Context, Loss, Objective, suggest
from zoo.training.objective.causal import Chat, NextToken, PrefixLM, Seq2Seq
from zoo.training.objective.contrastive import Contrastive
from zoo.training.objective.distil import Distil
from zoo.training.objective.kto import KTO
from zoo.training.objective.labelled import Classify, RecordObjective, Regress, Tag
from zoo.training.objective.masked import MLM
from zoo.training.objective.preference import DPO, IPO, ORPO, Reward
from zoo.training.objective.spans import UL2, Denoising, SpanCorruption

__all__ = [
    "DPO",
    "IPO",
    "KTO",
    "MLM",
    "ORPO",
    "UL2",
    "Auto",
    "Chat",
    "Classify",
    "Context",
    "Contrastive",
    "Denoising",
    "Distil",
    "Loss",
    "NextToken",
    "Objective",
    "PrefixLM",
    "RecordObjective",
    "Regress",
    "Reward",
    "Seq2Seq",
    "SpanCorruption",
    "Tag",
]


class Auto(Objective, kind="auto"):
    """The usual objective: chat for conversations, dpo for preferences, kto for judgements; else next_token for a
    decoder, mlm for an encoder, span_corruption for an encoder-decoder."""

    def settle(self, spec: Any, data: Any = None) -> Objective:
        known = {each.kind: each for each in (NextToken, MLM, SpanCorruption, Chat, DPO, KTO)}
        return known[suggest(spec, data)](z_loss=self.z_loss, chunk_mib=self.chunk_mib).settle(spec, data)

    def collator(self, context: Context) -> Any:
        return self.settle(context.spec).collator(context)
