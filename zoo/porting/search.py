"""Search for a draft whose outputs equal a reference's: begin at the nearest family, then make one change at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from zoo.checkpoint.inverse import FIRST
from zoo.errors import ConfigError
from zoo.porting.draft import Draft, start_draft
from zoo.porting.field_effects import find_effects, list_fields
from zoo.porting.moves import (
    Move,
    is_relevant,
    list_borrowed,
    list_choices,
    list_flips,
    list_placements,
    list_positions,
)
from zoo.porting.nearest import list_others, rank_families
from zoo.porting.reference_model import Maker, Reference
from zoo.porting.tensor_rows import place_tensors
from zoo.porting.trial import TrialOutcome, try_draft, try_spec

TRIED = 8
"""Number of families, nearest by names, that are tried on the reference."""

FINALISTS = 3
"""Maximum number of families from which a search begins; it ends at the first equal logits."""

STEPS = 6
"""Maximum number of changes in one search."""


@dataclass
class Attempt:
    """A draft, its outcome on the reference, and the changes that led to it."""

    draft: Draft
    outcome: TrialOutcome
    steps: list[str]

    @property
    def size(self) -> int:
        """The number of entries that the draft states beyond its base."""
        draft = self.draft
        return sum(len(each) for each in (draft.aliases, draft.defaults, draft.model, draft.keys, draft.derive))


def search(
    maker: Maker, reference: Reference, say: Callable[[str], None] = lambda line: None
) -> tuple[Attempt, list[Attempt]]:
    """Find the draft nearest to a reference. Returns its attempt, and the unchanged attempts of the nearest families.
    Raises ConfigError if no family is of the reference's topology."""
    near = rank_families(maker, reference)[:TRIED]
    if not near:
        raise ConfigError(f"{maker.model_type}: no family here is of kind '{reference.topology}'")
    known: dict[str, bool] = {}
    starts = [_begin(each, maker, reference) for each in near]
    starts.sort(
        key=lambda each: (
            each.outcome.rank,
            each.size,
            FIRST.index(each.draft.base) if each.draft.base in FIRST else len(FIRST),
        )
    )
    best: Attempt | None = None
    for start in starts[:FINALISTS]:
        say(f"from {start.draft.base}: {describe_rank(start.outcome)}")
        names = [name for name in list_fields(reference) if name not in start.draft.to_family().reads]
        tried = find_effects(maker, reference, (name for name in names if name not in known))
        known |= {name: effect is not None and effect.changes for name, effect in tried.items()}
        unread = {name: reference.config[name] for name in names if known[name]}
        found = _improve(start, reference, near, unread, say)
        if best is None or found.outcome.rank < best.outcome.rank:
            best = found
        if best.outcome.is_equal:
            break
    assert best is not None
    return best, starts


def _begin(base: str, maker: Maker, reference: Reference) -> Attempt:
    draft = replace(start_draft(base, maker, reference), assumed=tuple(reference.config))
    return Attempt(*try_with_rows(draft, reference))


def try_with_rows(draft: Draft, reference: Reference) -> tuple[Draft, TrialOutcome, list[str]]:
    """Try a draft; if tensors have no place, try it again with rows found for them. Returns the better draft."""
    outcome = try_draft(draft, reference)
    if outcome.spec is None or not outcome.strange or not (outcome.lost or outcome.missing):
        return draft, outcome, []
    rows = place_tensors(draft, outcome, reference)
    named = draft.with_keys(rows)
    again = try_draft(named, reference) if rows else outcome
    if rows and again.is_better(outcome):
        return named, again, [f"{ours}: {theirs}" for ours, theirs in rows.items()]
    return draft, outcome, []


def _improve(
    start: Attempt, reference: Reference, near: list[str], unread: Mapping[str, object], say: Callable[[str], None]
) -> Attempt:
    """Repeatedly take the change that helps most, until none helps (greedy search). The best change is the one after
    which the first stage that differs comes latest in the pass (`TrialOutcome.rank`)."""
    at = start
    for _ in range(STEPS):
        if at.outcome.is_equal:
            break
        better: Attempt | None = None
        for move in _list_moves(at, reference, near, unread):
            if not is_relevant(move, at.outcome.departure):
                continue
            if move.spot is not None and not _helps(move, (better or at).outcome, at.outcome, reference):
                continue
            draft, outcome, rows = try_with_rows(move.apply(at.draft), reference)
            if outcome.is_better((better or at).outcome):
                better = Attempt(draft, outcome, [*at.steps, move.text, *rows])
                if outcome.is_equal:
                    break
        if better is None:
            break
        at = better
        say(f"  {at.steps[-1]}: {describe_rank(at.outcome)}")
    return at


def _helps(move: Move, best: TrialOutcome, now: TrialOutcome, reference: Reference) -> bool:
    """Whether a change of one field, made in the Spec alone, is better than the best so far, or leaves tensors for
    which rows may be found. Only then is the whole model composed, which takes ten times as long."""
    spec = move.edit(now)
    if spec is None:
        return False
    made = try_spec(TrialOutcome(now.body, spec), reference)
    return made.is_better(best) or (bool(made.lost or made.missing) and bool(made.strange))


def _list_moves(at: Attempt, reference: Reference, near: list[str], unread: Mapping[str, object]) -> Iterator[Move]:
    """Yield the changes to try: single fields, other choices, exchanged rows, places for unread fields, other families'
    positions, and other parts of other families."""
    if at.outcome.spec is None:
        return
    yield from list_flips(at.draft, at.outcome)
    yield from list_choices(at.draft)
    own = at.draft.to_family()
    left = {name: value for name, value in unread.items() if name not in own.reads}
    if at.outcome.gaps:
        yield from _swaps(at)
        for name, value in left.items():
            yield from list_placements(at.draft, at.outcome, name, value)
        yield from list_positions(at.draft)
    others = [*near, *(name for name in list_others(at.draft.model_type) if name not in near)]
    yield from list_borrowed(at.draft, reference.config, others, set(left))
    yield from list_borrowed(at.draft, reference.config, near)


def _swaps(at: Attempt) -> Iterator[Move]:
    """Yield swaps of two rows that the draft found itself: it may have confused their names, such as gate and up
    projection."""
    rows = [(ours, theirs) for ours, theirs in at.draft.keys.items() if theirs is not None]
    for index, (ours, theirs) in enumerate(rows):
        for other, name in rows[index + 1 :]:
            if ours.rpartition(".")[0] == other.rpartition(".")[0]:
                yield Move(f"{ours} and {other} exchanged", {}, keys={ours: name, other: theirs})


def describe_rank(outcome: TrialOutcome) -> str:
    """Describe in a few words how far an outcome is from its reference."""
    if outcome.spec is None:
        return f"cannot be read ({outcome.faults[0]})" if outcome.faults else "cannot be read"
    if not outcome.gaps:
        return f"{outcome.unplaced} tensors not placed"
    if outcome.is_equal:
        return f"equal logits (largest difference {outcome.gaps['logits']:.0e})"
    return f"departs at {outcome.departure}, logits apart by {outcome.gaps['logits']:.1g}"
