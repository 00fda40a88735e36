# K draft tokens of a row, V vocabulary
"""Speculative decoding: propose tokens and verify them in one pass, without changing the distribution."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from zoo.lazy import Tensor, torch
from zoo.sampling.draws import DrawState
from zoo.sampling.sampler import Sampler


def draw_draft(sampler: Sampler, logits: Tensor, states: Sequence[DrawState]) -> tuple[list[int], Tensor]:
    """Draw a draft token for each row from the draft model's logits [B, V]. Return the tokens, and the probabilities
    [B, V] from which they were drawn.

    Each row's sampling options apply to the draft too, so that only tokens that the target may accept are proposed. A
    row without a token gets −1. For further tokens of a draft, pass the last of `state.ahead(draft so far)`.
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
    """Verify drafts: return the accepted draft tokens of each row, and one more token.

    `logits` [sum of K + 1, V] are the target's after each row's last token and after each token of its draft, row after
    row. `shares` [K, V] are the probabilities that a draft model drew with (`draw_draft`); None for a row whose draft
    tokens are n-gram guesses. States are read, not advanced. A row's tokens end at a stop id, or at −1 if the row has
    no next token.

    - Greedy rows, and n-gram guesses: at every place the row chooses its token as it would without a draft, by the same
      random number. The draft is accepted up to the first difference. So a guess x is accepted with probability p(x),
      as by rejection sampling, and the text equals that of a run without speculation, even with a seed.
    - Draft models (Leviathan et al., 2023; Chen et al., 2023): x drawn with q(x) is accepted with probability min(1,
      p(x) / q(x)); the first rejected token is replaced by a draw from max(p − q, 0). This keeps the distribution, but
      not a seed's text, which depends on where drafts begin.
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
    """Return the tokens up to and including the first stop id."""
    return next((tokens[: place + 1] for place, token in enumerate(tokens) if token in stop_ids), tokens)


def _agree(draft: Sequence[int], chosen: list[int]) -> list[int]:
    """Return the chosen tokens up to and including the first that differs from the draft."""
    for place, (proposed, own) in enumerate(zip(draft, chosen, strict=False)):
        if proposed != own:
            return chosen[: place + 1]
    return chosen


def _reject(draft: Sequence[int], target: Tensor, proposal: Tensor | None, ahead: Sequence[DrawState]) -> list[int]:
    """Return a row's tokens by modified rejection sampling of its draft. `target` [K + 1, V] and `proposal` [K, V] are
    probabilities.

    Each position has separate random numbers for the draft, the test and the replacement. After a rejection, later
    positions use their random numbers again, because none of their decisions was kept.
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
    """Draw from max(p − q, 0), the excess of the target's probabilities over the proposal's."""
    rest = (target - proposal.to(target)).clamp_(min=0)
    return _draw_one(rest if bool(rest.any()) else target, state)


def _draw_one(weights: Tensor, state: DrawState) -> int:
    point = torch.tensor([[state.point()]], dtype=torch.float64, device=weights.device)
    return int(_draw(weights[None], point))


def _draw(weights: Tensor, points: Tensor) -> Tensor:
    """Draw one token for each row [B] by weights [B, V], in float64. −1 for a row whose weights are NaN or all 0."""
    total = weights.cumsum(-1)
    last = (torch.arange(weights.shape[1], device=weights.device) * (weights > 0)).amax(-1, keepdim=True)
    tokens = torch.minimum(torch.searchsorted(total, points * total[:, -1:], right=True), last)
    return torch.where(total[:, -1] > 0, tokens[:, 0], -1)


class PromptLookup:
    """Propose the tokens that followed an earlier occurrence of the last n-gram (prompt lookup decoding, Saxena, 2023).

    The index of n-grams grows by one entry for each token and length. After failed proposals the lookup pauses, longer
    each time, so that text without repeats is not slowed down.
    """

    def __init__(self, ids: Sequence[int] = (), *, longest: int = 4, shortest: int = 2) -> None:
        self.ids: list[int] = []
        self._lengths = range(longest, shortest - 1, -1)
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> index after its latest occurrence
        self._pause, self._resume = 1, 0
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        """Add new tokens of the sequence to the index."""
        for token in ids:
            end = len(self.ids)
            for length in self._lengths:  # n-grams that end before this token: look-ups must find earlier ones
                if length <= end:
                    self._after[tuple(self.ids[end - length :])] = end
            self.ids.append(token)

    def propose(self, count: int) -> list[int]:
        """Propose `count` tokens that followed the longest known n-gram at the sequence's end. Return [] if no n-gram
        is known, or during a pause.

        A copy that reaches the end of the sequence continues from its own start, as repeating text does.
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
        """Record a proposal's result. If less than a quarter was accepted, the lookup pauses twice as long as the last
        time (up to 256 tokens). Otherwise it does not pause, and its next pause is short."""
        if not proposed:
            return
        self._pause = 1 if 4 * accepted >= proposed else min(2 * self._pause, 256)
        self._resume = len(self.ids) + self._pause if self._pause > 1 else 0
