"""The objective that a model's topology is usually trained on."""

from __future__ import annotations

from typing import Any

from zoo.training.objective.base import Context, Objective, suggest


class Auto(Objective, kind="auto"):
    """The next token for a decoder, masked tokens for an encoder, spans for an encoder-decoder: their own defaults."""

    def settle(self, spec: Any) -> Objective:
        from zoo.training.objective.causal import NextToken
        from zoo.training.objective.masked import MLM
        from zoo.training.objective.spans import SpanCorruption

        known = {each.kind: each for each in (NextToken, MLM, SpanCorruption)}
        return known[suggest(spec)](z_loss=self.z_loss, chunk_mib=self.chunk_mib)

    def collator(self, context: Context) -> Any:
        return self.settle(context.spec).collator(context)
