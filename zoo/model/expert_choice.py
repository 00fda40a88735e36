# B batch, T tokens, E experts, C tokens of an expert
"""Expert choice: experts choose their tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from zoo.kernels.packed import count_in_run, find_run_firsts
from zoo.lazy import Tensor, torch
from zoo.model.router import Router, Routes, check_count

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class ExpertChoice(Router, kind="expert_choice"):
    """Expert choice (Zhou et al., 2022): of the T tokens of a row, each expert takes the ⌊T·top_k/E⌋ tokens with the
    highest probability for it. So loads are equal, and a token has top_k experts on average.

    A token's experts depend on the tokens after it, so that this router is not for causal models. Padding is neither
    chosen nor counted. Packed documents are routed separately, by their own lengths; a document of fewer than E/top_k
    tokens has no expert.
    """

    causal: ClassVar[bool | None] = False
    drops: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count(self)

    def forward(self, m: Weights, x: Tensor, step: Step) -> Routes:
        batch, length, _ = x.shape
        probs = self.score(m, x).softmax(-1).transpose(1, 2)  # B E T
        taken = length * self.top_k // self.n_experts
        if step.documents is not None or step.real is not None or not taken:
            probs = self._limited(probs, step)
            taken = max(taken, 1)  # the experts' products need a row
        weights, places = probs.topk(taken, -1)  # B E C
        starts = length * torch.arange(batch, device=x.device)
        tokens = (places + starts[:, None, None]).transpose(0, 1).flatten()  # E·B·C
        experts = torch.arange(self.n_experts, device=x.device)
        ends = (experts + 1) * (batch * taken)
        weights = weights.clamp(min=0).transpose(0, 1).flatten() * self.scale
        return Routes(tokens, experts.repeat_interleave(batch * taken), ends.to(torch.int32), weights)

    def _limited(self, probs: Tensor, step: Step) -> Tensor:
        """Set probabilities [B, E, T] to −1 for padding and for tokens that rank below their document's share of an
        expert."""
        batch, _, length = probs.shape
        real = probs.new_ones(batch, length, dtype=torch.bool) if step.real is None else step.real
        documents = torch.zeros_like(real, dtype=torch.long) if step.documents is None else step.documents
        share = count_in_run(documents, real) * self.top_k // self.n_experts  # B T, of the token's own document
        probs = probs.masked_fill(~real[:, None], -1.0)
        order = probs.argsort(dim=-1, descending=True, stable=True)  # B E T
        numbers = documents[:, None].expand_as(order).gather(-1, order)
        by_document = numbers.argsort(dim=-1, stable=True)  # within a document still from the best to the worst
        order, numbers = order.gather(-1, by_document), numbers.gather(-1, by_document)
        places = torch.arange(length, device=order.device).expand_as(order)
        rank = places - find_run_firsts(numbers)
        rank = torch.zeros_like(order).scatter(-1, order, rank)
        return probs.masked_fill(rank >= share[:, None], -1.0)
