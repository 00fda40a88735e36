# K draft tokens of a row, V vocabulary
"""Speculative decoding: propose tokens, verify them in one pass, keep the distribution as it was."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from zoo.lazy import torch
from zoo.sampling.draws import DrawState
from zoo.sampling.sampler import Sampler

if TYPE_CHECKING:
    from torch import Tensor


def draw_draft(sampler: Sampler, logits: Tensor, states: Sequence[DrawState]) -> tuple[list[int], Tensor]:
    """Tokens that a draft model proposes after these states, and the probabilities [B, V] they were drawn with.

    The options of each row apply to the draft too, so that it proposes what the target may accept. −1 for a row without
    a token. For the second token of a draft, pass the last of `state.ahead(draft so far)`.
    """
    shares = sampler.find_shares(logits, states)
    points = torch.tensor([[state.point("draft")] for state in states], dtype=torch.float64, device=logits.device)
    return _draw(shares, points).tolist(), shares


def accept(
    sampler: Sampler,
    drafts: Sequence[Sequence[int]],
    logits: Tensor,
    states: Sequence[DrawState],
    shares: Sequence[Tensor | None] | None = None,
) -> list[list[int]]:
    """The tokens of each row that verification gives: those of its draft that hold, and one more.

    `logits` [sum of K + 1, V] are the target's, after each row's last token and after each token of its draft, row
    after row. `shares` [K, V] are the probabilities that a draft model drew with (`draw_draft`); None for a row whose
    draft is one guess at each place (n-grams). States are read, not advanced. A stop id ends a row's tokens, and a −1
    those of a row that has none.

    - Greedy, and of a guess: the row chooses its token at every place as it would without a draft, by the same random
      number, and the draft holds as far as it agrees. That accepts a guess x with probability p(x), as the rule of
      rejection would, and gives the very tokens of a run without speculation.
    - Of a draft model (Leviathan et al., 2023; Chen et al., 2023): x drawn with q(x) holds with probability
      min(1, p(x) / q(x)); the first that does not is replaced by a draw from max(p − q, 0).
    """
    ahead = [state.ahead(draft) for state, draft in zip(states, drafts, strict=True)]
    starts = [0]
    for draft in drafts:
        starts.append(starts[-1] + len(draft) + 1)
    assert starts[-1] == len(logits), f"{len(logits)} rows of logits for drafts that need {starts[-1]}"
    results: list[list[int]] = [[] for _ in states]
    proposals = shares or [None] * len(states)
    weighed = [row for row, q in enumerate(proposals) if q is not None and states[row].sampling.temperature > 0]
    plain = [row for row in range(len(states)) if row not in weighed]
    if plain:
        places = [starts[row] + place for row in plain for place in range(len(ahead[row]))]
        rows = logits if len(places) == len(logits) else logits[torch.tensor(places, device=logits.device)]
        chosen = iter(sampler.choose(rows, [state for row in plain for state in ahead[row]]))
        for row in plain:
            results[row] = _agree(drafts[row], [next(chosen) for _ in ahead[row]])
    for row in weighed:
        target = sampler.find_shares(logits[starts[row] : starts[row] + len(ahead[row])], ahead[row])
        results[row] = _reject(drafts[row], target, proposals[row], ahead[row])
    return [_end(tokens, state.stop_ids) for tokens, state in zip(results, states, strict=True)]


def _end(tokens: list[int], stop_ids: Collection[int]) -> list[int]:
    """The tokens up to and with the first that stops the text."""
    return next((tokens[: place + 1] for place, token in enumerate(tokens) if token in stop_ids), tokens)


def _agree(draft: Sequence[int], chosen: list[int]) -> list[int]:
    """The choices up to and with the first that differs from the draft."""
    for place, (proposed, own) in enumerate(zip(draft, chosen, strict=False)):
        if proposed != own:
            return chosen[: place + 1]
    return chosen


def _reject(draft: Sequence[int], target: Tensor, proposal: Tensor | None, ahead: Sequence[DrawState]) -> list[int]:
    """The modified rejection rule over one row's draft; `target` [K + 1, V] and `proposal` [K, V] are probabilities.

    Each place has a random number of its own for the draft, the test and the replacement. Those of places that are
    thrown away decided nothing that stays, and may be used again there.
    """
    assert proposal is not None
    for place, (token, state) in enumerate(zip(draft, ahead, strict=False)):
        p, q = float(target[place, token]), float(proposal[place, token])
        if not state.point("accept") * q < p:  # NaN too: the row has no token
            return [*draft[:place], _replace(target[place], proposal[place], state)]
    if len(ahead) <= len(draft):  # the grammar was complete, and the draft ended the text
        return list(draft[: len(ahead)])
    return [*draft, _draw_one(target[len(draft)], ahead[len(draft)])]


def _replace(target: Tensor, proposal: Tensor, state: DrawState) -> int:
    """A draw from what the target has above the proposal."""
    rest = (target - proposal.to(target)).clamp_(min=0)
    return _draw_one(rest if bool(rest.any()) else target, state)


def _draw_one(weights: Tensor, state: DrawState) -> int:
    point = torch.tensor([[state.point()]], dtype=torch.float64, device=weights.device)
    return int(_draw(weights[None], point))


def _draw(weights: Tensor, points: Tensor) -> Tensor:
    """A token a row [B] with these weights [B, V], in float64; −1 where they are NaN."""
    total = weights.cumsum(-1)
    last = (torch.arange(weights.shape[1], device=weights.device) * (weights > 0)).amax(-1, keepdim=True)
    tokens = torch.minimum(torch.searchsorted(total, points * total[:, -1:], right=True), last)
    return torch.where(total[:, -1] > 0, tokens[:, 0], -1)


class PromptLookup:
    """Propose what followed the last tokens where they stood before (prompt lookup decoding, Saxena, 2023).

    An index of the sequence's n-grams grows with it, a step for each token and length. Where proposals keep failing
    it pauses, for longer each time, so that text without repeats is not slowed down by guesses.
    """

    def __init__(self, ids: Sequence[int] = (), *, longest: int = 4, shortest: int = 2) -> None:
        self.ids: list[int] = []
        self._lengths = range(longest, shortest - 1, -1)
        self._after: dict[tuple[int, ...], int] = {}  # an n-gram -> the index after the latest place where it stood
        self._pause, self._resume = 1, 0
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        """Take the tokens that were added to the sequence."""
        for token in ids:
            end = len(self.ids)
            for length in self._lengths:  # those that end before this token: the last one must find an earlier one
                if length <= end:
                    self._after[tuple(self.ids[end - length :])] = end
            self.ids.append(token)

    def propose(self, count: int) -> list[int]:
        """Up to `count` tokens that followed the longest n-gram that the sequence ends with; none if it is new.

        Where the copy reaches the sequence's end it goes on from its own start, as text that repeats does.
        """
        if len(self.ids) < self._resume:
            return []
        for length in self._lengths:
            start = self._after.get(tuple(self.ids[-length:])) if length < len(self.ids) else None
            if start is not None:
                period = len(self.ids) - start
                return [self.ids[start + step % period] for step in range(count)]
        return []

    def report(self, proposed: int, accepted: int) -> None:
        """Learn how a proposal went: one of which less than a quarter held makes the pauses longer, any other ends
        them."""
        if not proposed:
            return
        self._pause = 1 if 4 * accepted >= proposed else min(2 * self._pause, 256)
        self._resume = len(self.ids) + self._pause if self._pause > 1 else 0
