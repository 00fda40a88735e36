"""Propose draft tokens for speculative decoding: from n-grams of the text itself, or with a smaller model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from zoo.cache.cache import Cache
from zoo.cache.cached_row import CachedRow
from zoo.cache.pool_store import Store, plan_store
from zoo.errors import ConfigError
from zoo.generation.graphs import make_graphs
from zoo.generation.prompt_towers import find_limit, find_writer
from zoo.generation.scheduler import RunningSequence
from zoo.lazy import Tensor, torch
from zoo.run.cache_layout import choose_layout
from zoo.sampling.draws import DrawState
from zoo.sampling.sampler import Sampler
from zoo.sampling.speculate import PromptLookup, draw_draft

if TYPE_CHECKING:
    from zoo.model.tower import Topology
    from zoo.run.layer import Model

UNREAD = 2
"""Maximum number of a row's tokens that a draft model reads at once after the prompt: the last token that it proposed
itself, and the token that the target model added."""

Proposal = tuple[list[int], "Tensor | None"]
"""Draft tokens [K], and the probabilities [K, V] from which they were drawn; None instead for n-gram guesses and an
empty draft."""


class Proposer(Protocol):
    """Interface: proposes draft tokens for speculative decoding."""

    def propose(self, sequences: Sequence[RunningSequence], counts: Sequence[int]) -> list[Proposal]:
        """Propose up to `counts[i]` tokens for each sequence."""
        ...

    def report(self, sequence: RunningSequence, proposed: int, accepted: int) -> None:
        """Record how many proposed tokens were accepted. The accepted tokens are already part of the sequence."""
        ...

    def forget(self, sequence: RunningSequence) -> None:
        """Drop the state of a sequence that has ended."""
        ...


class NGrams:
    """Propose the tokens that followed the same n-gram earlier in the prompt or the text (Saxena, 2023)."""

    def __init__(self) -> None:
        self._lookups: dict[RunningSequence, PromptLookup] = {}

    def propose(self, sequences: Sequence[RunningSequence], counts: Sequence[int]) -> list[Proposal]:
        found: list[Proposal] = []
        for each, count in zip(sequences, counts, strict=True):
            lookup = self._lookups.setdefault(each, PromptLookup(each.source or ()))
            known = len(each.source or ())
            lookup.extend(each.ids[len(lookup.ids) - known :])
            found.append((lookup.propose(count) if count > 0 else [], None))
        return found

    def report(self, sequence: RunningSequence, proposed: int, accepted: int) -> None:
        self._lookups[sequence].report(proposed, accepted)

    def forget(self, sequence: RunningSequence) -> None:
        self._lookups.pop(sequence, None)


def check_draft(spec: Topology, vocab_size: int) -> None:
    """Check a draft model. Raises ConfigError for an encoder-decoder, a prefix-LM, recurrent layers, or a vocabulary
    size other than the target's."""
    writer = find_writer(spec)
    refused = {
        "is an encoder-decoder": writer is not spec,
        "reads its prompt both ways": getattr(writer, "prefix_lm", False),
        "has recurrent layers, whose states cannot be taken back": any(b.state() for b in writer.blocks.values()),
        f"has a vocabulary of {writer.output_vocab_size}, the model {vocab_size}": writer.output_vocab_size
        != vocab_size,
    }
    for why, holds in refused.items():
        if holds:
            raise ConfigError(f"draft: {why} (a decoder of attention with the model's tokenizer)")


class DraftModel:
    """Propose up to `ahead` tokens drawn from a smaller model with the same vocabulary (Leviathan et al., 2023). The
    draft model has its own cache, for `rows` rows of `tokens` tokens; `graphs` and `note` are the Engine's. Raises
    ConfigError for an unsuitable draft model (`check_draft`), or one without positions for `tokens` tokens."""

    def __init__(
        self,
        model: Model,
        vocab_size: int,
        *,
        rows: int,
        tokens: int,
        ahead: int,
        graphs: bool | None = None,
        note: Callable[[str], object] = warnings.warn,
    ) -> None:
        check_draft(model.spec, vocab_size)
        writer = find_writer(model.spec)
        ends = [end for end in (find_limit(writer), writer.cacheable_until) if end is not None]
        if ends and min(ends) < tokens:
            raise ConfigError(
                f"draft: its positions end at {min(ends)}, and {tokens} tokens may come (fewer, or another)"
            )
        self.model = model
        weight = next(model.parameters())
        layout = choose_layout(writer, weight.dtype, weight.device, model.kernel)
        plan = plan_store(writer, rows, tokens, 0, weight.dtype.itemsize, None, new=UNREAD + ahead, **layout)
        where = {"dtype": weight.dtype, "device": weight.device, **layout}
        self.store = Store(writer, plan.pages, plan.slots, new=UNREAD, undone=ahead, **where)
        self.graphs = make_graphs(model, writer, self.store, rows, asked=graphs, note=note)
        self.sampler = Sampler()
        self._rows: dict[RunningSequence, CachedRow] = {}

    def propose(self, sequences: Sequence[RunningSequence], counts: Sequence[int]) -> list[Proposal]:
        wanted = [each for each, count in zip(sequences, counts, strict=True) if count > 0]
        logits = self._catch_up(wanted)
        drafts: dict[RunningSequence, list[int]] = {each: [] for each in wanted}
        shares: dict[RunningSequence, list[Tensor]] = {each: [] for each in wanted}
        room = dict(zip(sequences, counts, strict=True))
        live, scores = wanted, logits
        while live:
            states = [self._state(each, drafts[each]) for each in live]
            tokens, found = draw_draft(self.sampler, scores, states)  # type: ignore[arg-type]
            going = []
            for number, (each, token) in enumerate(zip(live, tokens, strict=True)):
                if token < 0:
                    continue
                drafts[each].append(token)
                shares[each].append(found[number])
                if len(drafts[each]) < room[each] and token not in each.asked.stop_ids:
                    going.append(each)
            live = going
            if live:
                scores = self._pass(live, [[drafts[each][-1]] for each in live])
        return [(drafts.get(each, []), torch.stack(shares[each]) if shares.get(each) else None) for each in sequences]

    def _state(self, sequence: RunningSequence, draft: list[int]) -> DrawState:
        return sequence.draws.ahead(draft)[-1] if draft else sequence.draws

    def _catch_up(self, sequences: Sequence[RunningSequence]) -> Tensor | None:
        """Run the draft model on the tokens of each sequence that it has not read yet. Return the logits [B, V] after
        the last ones; None without sequences. In a paged store, rows with at most UNREAD unread tokens share a pass."""
        unread: dict[RunningSequence, list[int]] = {}
        for each in sequences:
            if each not in self._rows:
                self._rows[each] = CachedRow(self.store)
            unread[each] = each.ids[self._rows[each].length :]
        begun = [each for each in unread if self._rows[each].length and len(unread[each]) <= UNREAD]
        together = begun if self.store.paged else []
        apart = [[each] for each in sequences if each not in set(together)]
        found: dict[RunningSequence, Tensor] = {}
        for batch in (*([together] if together else []), *apart):
            found |= zip(batch, self._pass(batch, [unread[each] for each in batch]), strict=True)
        return torch.stack([found[each] for each in sequences]) if found else None

    def _pass(self, sequences: Sequence[RunningSequence], tokens: list[list[int]]) -> Tensor:
        """Run the draft model on each sequence's next tokens. Return the logits [B, V] after the last of them."""
        rows, counts = [self._rows[each] for each in sequences], [len(each) for each in tokens]
        new = max(counts)
        with torch.inference_mode():
            if self.graphs is not None and (logits := self.graphs.run(rows, tokens)) is not None:
                return torch.stack([each[-1] for each in logits])
            padded = [each + [0] * (new - len(each)) for each in tokens]
            options: dict[str, Any] = {"counts": counts if min(counts) < new else None, "logits_to_keep": 1}
            ids = torch.tensor(padded, device=self.store.device)
            return self.model(ids, cache=Cache(self.store, rows), **options).logits[:, -1]

    def report(self, sequence: RunningSequence, proposed: int, accepted: int) -> None:
        row = self._rows.get(sequence)
        if row is not None:
            row.length = min(row.length, len(sequence.ids) - 1)

    def forget(self, sequence: RunningSequence) -> None:
        row = self._rows.pop(sequence, None)
        if row is not None:
            row.release()
