"""Draft a family from a `model_type` alone: make a reference, search, place fields, compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zoo.porting.draft import Draft
from zoo.porting.left_out import complete
from zoo.porting.parity import ParityReport, check_parity, count_fields, place_fields
from zoo.porting.reference_model import Maker, quieten_transformers
from zoo.porting.search import Attempt, describe_rank, search
from zoo.porting.trial import TrialOutcome, try_draft

SHOWN = 6
"""Maximum number of names in a line of the report."""


@dataclass
class Ported:
    """A draft with its outcome on the reference, the comparisons, the changes taken, and the families tried first."""

    draft: Draft
    outcome: TrialOutcome
    parity: ParityReport
    steps: list[str]
    starts: list[Attempt]


def draft_family(model_type: str, changes: Mapping[str, Any], say: Callable[[str], None] = lambda line: None) -> Ported:
    """Draft the family of a type. Raises ConfigError if transformers is missing, lacks the type, or cannot build it."""
    with quieten_transformers():
        maker = Maker(model_type, changes)
        reference = maker.make_first()
        best, starts = search(maker, reference, say)
        draft, said = best.draft, {}
        if best.outcome.is_equal:
            draft, said = place_fields(draft, maker, reference, [each.draft.base for each in starts], say)
        draft = complete(draft, maker)
        outcome = try_draft(draft, reference)
        parity = check_parity(draft, maker, reference, outcome)
        parity.fields = said
        return Ported(draft, outcome, parity, best.steps, starts)


def describe(found: Ported) -> Iterator[str]:
    """Report the result, line by line."""
    yield f"{found.draft.model_type}: like {found.draft.base}"
    near = (f"{each.draft.base} ({describe_rank(each.outcome)})" for each in found.starts[:SHOWN])
    yield f"nearest families: {', '.join(near)}"
    for step in found.steps:
        yield f"change: {step}"
    for name, (holds, said) in found.parity.checks.items():
        yield f"{name}: {'equal' if holds else 'NOT equal'}, {said}"
    if found.outcome.gaps and not found.outcome.is_equal:
        gaps = (f"{stage} {gap:.1g}" for stage, gap in found.outcome.gaps.items())
        yield f"differences by stage: {', '.join(gaps)}"
    yield from _describe_unplaced(found.outcome)
    for verdict, names in count_fields(found.parity.fields).items():
        yield f"fields {verdict}: {', '.join(names)}"
    wrong = {name: said for name, said in found.parity.fields.items() if said.startswith(("WRONG", "unread"))}
    yield from (f"field to place: {name}, {said}" for name, said in wrong.items())


def _describe_unplaced(outcome: TrialOutcome) -> Iterator[str]:
    """Yield lines on faults of a config that cannot be read, and on tensors that have no place."""
    yield from (f"cannot be read: {fault}" for fault in outcome.faults)
    groups = {
        "tensors of the file without a place": outcome.strange,
        "tensors that the draft wants and the file lacks": list(outcome.missing),
        "tensors of another shape": outcome.misshapen,
        "parts of the model without a row in keys": outcome.lost,
    }
    for what, names in groups.items():
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            yield f"{what}: {', '.join(names[:SHOWN])}{more}"
