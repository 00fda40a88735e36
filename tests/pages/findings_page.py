"""Writes docs/findings.md: what each recipe claims, what its source prints, and what came of it here.
`python tests/pages findings` writes it from recipes/verdicts/; test_recipes.py holds the page against them."""

# ruff: noqa: E501  (prose as wide as the page's)

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from zoo.experiments.decisions import Kept, list_decisions
from zoo.experiments.experiment import Experiment
from zoo.experiments.judging import ExperimentOutcome, Finding, describe_pair
from zoo.experiments.recipe_tables import (
    FINDINGS,
    count_held,
    describe_rates,
    describe_training,
    format_value,
    list_arms,
    list_cells,
    list_costs,
    list_remarks,
    list_unmatched,
    tell_speedups,
)
from zoo.experiments.registration import describe_registration, list_shared_runs
from zoo.gallery.finding_facts import list_card_rows, list_effects, read_kept
from zoo.paths import recipes_dir
from zoo.probes.card import draw_card, name_model
from zoo.probes.card import list_costs as list_prices
from zoo.probes.outcome_store import read_cards
from zoo.report import format_markdown, rate_table
from zoo.report.forest_plot import make_forest
from zoo.report.price_plot import write_figure

PAGE = Path(__file__).parents[2] / "docs" / "findings.md"

HEAD = """\
# Findings

Written by `python tests/pages findings` from `recipes/verdicts/`. A finding is a recipe: a claim, its arms and seeds, and the results that
were expected. Its verdict is kept even if it contradicts the claim or the source. Each finding says when it was registered,
what was changed afterwards, and which of its runs may have been known by then, as another recipe has the same ones; those of 27 November
2026 ran before registrations were kept. `zoo recipes NAME --run` runs one again.

- **found**: an arm is better, worse, equivalent within the recipe's margin, or the comparison is inconclusive: these seeds do not show a
  difference, and there may be one ([how verdicts are made](verdicts.md)).
- **value**: the difference of two arms, ± half of its confidence interval. A bound on one arm has the mean and the range over its seeds. In
  the table of arms ± is one standard deviation of the runs, in the table of learning rates a standard error.
- **p**: of the deciding test (difference or equivalence), corrected over the comparisons of a recipe, and not over recipes: if
  the arms of twenty recipes were all equal, about one of the twenty would find a difference.
- **Learning rates** are searched for each arm, or fixed by the recipe. A fixed rate may suit one arm less than the other, and the
  difference includes what that costs. `lr` is the rate that ran; `best lr` is the minimum of a parabola through the losses of the window,
  as rates are chosen now; `lowest loss` is that of one run of the search, with another seed and other validation rows; `window` has the decades of rates whose
  loss is within 5 % of the lowest.
- **Shared runs**: equal configs give equal runs, to the bit, and many recipes have the same baseline (loss 1.997, 1.991 or, of
  an older rate, 2.004, 1.996 or 2.001 at searched rates, with five, six or seven seeds; 1.777 in experts, parallel-blocks and positions). If the baseline's loss came out low by chance,
  the differences of all other arms from it are too high.
- **Not matched** are costs in which two compared arms differ by over 1 %, beside seconds. A difference may come from these.
- **FLOPs** are those of matrix products and attention, without the optimizer's. Elementwise FLOPs (norms, activations, rotations, sums; of
  the forward passes) are approximate and not matched; they were counted on 1 December 2026, from the recipes.
- **Seconds** can be compared where the machine's load was below its cores. Above, other work slowed the runs, some more than others.
- **Size**: these models are small and train for minutes on two cores. A claim about large ones is neither shown nor refuted by them.

All kept runs were judged again when a test was mended:

- Until 29 November 2026 a difference that was not significant was called "no significant difference", which some pages took for equality.
  Margins that were added to judge the runs again, on 30 November, were added after the runs.
- On 30 November the error of a searched rate was mended: where the best rate was off the middle, it had been that of another fit. At
  softcaps-and-sinks "scores to 50" was inconclusive before, and is equivalent now; fewer-rotations and optimizers kept their verdicts.
- On 1 December windows of good learning rates became 5 % deep. They had been 1 % deep, which is as little as the noise of a run. The five
  comparisons of windows that were kept then were inconclusive before, and stayed so.
- On 1 December the error of a searched rate became that of a parabola through the good window alone, which is larger. One comparison of
  depth-recurrence ("equivalent" before) and one of norms-inside-embeddings ("worse" before) became inconclusive, and value residuals
  ("equivalent" before) better.
- On 1 December the noise of a search on narrow models was mended. It had been the noise of the arms' wide runs, and is now that of kept
  runs of the narrow size, which is larger. At qk-norm-10m norms of queries and keys were "equivalent" before, though a difference was
  shown too: a difference that is shown to lie within the margin is called equivalent. The wider interval reaches beyond the margin, and
  still excludes 0. So they are called worse now, though less is known of the difference.
- On 1 December accuracies got at least the noise of the number of answers that were scored. No kept finding changed by that.

Runs were not repeated for that. Until 30 November a rate was the minimum of a parabola through five losses. One of the five often lay above
the good window, where the loss rises suddenly, and pulled the minimum down: the baseline of loss 2.004 ran 0.17 decades below `best lr`. On
1 December recipes ran again at `best lr`, in an order that was fixed before, until the day's time was over: norms-after, value-residuals,
sandwich-norms, squared-relu, qk-norm, glu-tuned, fewer-rotations, softcaps-and-sinks, head-outputs, normuon, schedule-free and optimizers.
Their verdicts replaced the older ones, whatever came out. Differences changed by 0.021 or less, but for norms after each sub-layer: on the
stream from +0.147 to +0.040, inside the residual from +0.474 to +0.544. The baseline's seeds differ by more so near to the sudden rise (a
standard deviation of 0.038 in place of 0.024), so that intervals are wider, and ten verdicts became inconclusive: two "worse" (norms of
queries and keys at qk-norm; norms after each sub-layer on the stream), two "better" (value-residuals; exclusive attention at head-outputs)
and six "equivalent" (two each at squared-relu and glu-tuned, one each at fewer-rotations and optimizers).

Of recipes that did not run again lines name each arm that ran over two standard errors away from `best lr`, what that cost by the parabola,
and what it adds to each difference. An interval includes the error of `best lr`, and not that an arm ran elsewhere. These are estimates,
from one run at each rate.

![Differences with their intervals, by metric; colour is the verdict, the band the margin, hollow a fixed rate, a diamond the published effect](../recipes/verdicts/effects.png)
"""

CARDS = """\
## Capability cards

How far twelve architectures get, shrunk to 64 channels and two layers: the hardest level up to which at least 90 % of the answers are
right, as the median of three seeds at one learning rate, and the range over the seeds where they differ. `zoo probe` makes a card, with the
arguments of the second table.

The tasks are smaller than those of their sources, and training is shorter: 200 to 600 steps of 24 to 64 rows, where MAD takes 20,000 of
128. So a level that is not reached was not learned here, and nothing is refuted. `none`: not even the easiest level was reached. `a guess`:
none was, and the answers are no better than guesses among those that a row makes possible (at hops such guesses are right at 29 to 42 %).

On 1 December a seed that is not reported chose the rates; of those within 2 % of its best accuracy the middle one is reported. The last row
is a control, a window of one token, so that no token sees another: it reaches no level of any probe. None of the others reaches a level of
hops, so that hops of this size tells nothing.

- Plain attention is grouped-query attention here (`gqa`, llama-tiny's own): its two heads of queries read one head of keys and values. So
  it keeps half of the state of multi-head attention (65.5 KB, the attention of recall-state), and "equal state" is equal to this half.
- OLMo Hybrid is at this size a layer of the gated delta rule, whose states may change sign, and one of attention. Eight letters are copied
  selectively by all three seeds of it, of KDA and of RWKV-7, by two of differential attention, by one of the delta rule alone, and by none
  of plain attention.
- Mamba-2 recalls 16 keys with one seed of three and none with two, at a rate at which another seed recalls all: what it learns of mqar in
  600 steps depends on the seed. So it is with a state as large as the keys and values that `gqa` keeps of these 64 tokens (28 instead of
  16): its seeds reach 16, 8 and no keys.
- In [recall-state](#recall-state), of 27 November, Mamba-2 recalls 16 keys with all three seeds at a state of 32, and is right at 0.96,
  0.80 and 0.27 at a state of 8. Task, steps, rows and seeds are the same. The rates are lower: the best of 0.001, 0.003 and 0.01 for the
  first reported seed there, 0.032 (a state of 16) and 0.018 (28) here. No state was tried at both, so that the files do not tell why they
  differ.
- The rate matters more than some differences here. At the best rate of one seed, the last before those that diverge, plain attention
  recalled 16 keys with one reported seed of three; at the rate in the middle of those as good, with all three. So it was for differential
  attention and for SmolLM3, with two of three.
- Sinks change nothing under a window of 16 tokens.
- Attention with positions in one layer of two (SmolLM3 at this size) finds the needle in 512 tokens with all seeds, and copies less; with
  RoPE in both layers it reaches 64 to 128 tokens.
- Of these twelve, only layers whose states may change sign went beyond eight bits of parity.
"""


DECISIONS = """\
## Decision accuracy

How often is the verdict at one size also that at about four times the size (3.3 to 3.7 times, at the ladder)? All recipes that compare the
same arms at both sizes are counted. Fewer than ten comparisons say little of how far a small experiment can be trusted for a decision about
larger models.
"""


CHANGED = """\
## Findings that changed

Three questions were asked twice, first at fixed learning rates, later at searched ones, and each has another answer now. Norms after each
sub-layer were better than norms before it, without a warm-up and at one high rate for both. With a warm-up, each at its own rate, no
difference is shown. SwiGLU was better than ReLU, and no difference is shown now (GEGLU is better than GELU at both). A tied head could not
be told from an untied one, and is now better. The rates are not the only change: models at searched rates train on 205 K tokens, the
earlier ones on 512 K. Both columns subtract the same way round, so that below 0 the arm of the question has the lower loss.
"""

ASKED_TWICE = {
    "norms after each sub-layer against norms before": (("norm-placement", 0, True), ("norms-after", 0, False)),
    "a gated feed-forward against an ungated one": (("glu", 1, False), ("glu-tuned", 1, False)),
    "a tied head against an untied one": (("tied-head", 0, True), ("tied-head-tuned", 0, False)),
}
"""Questions, each with the recipe and the place of its comparison at fixed rates, and at searched ones, and whether the
recipe subtracts the other way round."""

TURNED = {"better": "worse", "worse": "better"}


def page() -> str:
    """The whole page."""
    told = read_kept()
    rows = [
        [
            f"[{name}](#{name})",
            recipe.claim,
            describe_rates(recipe),
            count_held(recipe, outcome),
        ]
        for name, (recipe, outcome) in told.items()
    ]
    table = format_markdown(("recipe", "claim", "rates", "expectations that hold"), rows)
    return "\n".join(
        [
            HEAD,
            table,
            "",
            write_changed(told),
            write_decisions(told),
            write_cards(),
            *(write_finding(name, *each, [outcome for _, outcome in told.values()]) for name, each in told.items()),
        ]
    )


def write_changed(kept: Kept) -> str:
    """A section: what was found at fixed learning rates, and later at searched ones."""
    rows = [[question, *(_tell(kept, *each) for each in both)] for question, both in ASKED_TWICE.items()]
    return f"{CHANGED}\n{format_markdown(('question', 'at fixed rates', 'at searched rates'), rows)}\n"


def _tell(kept: Kept, name: str, place: int, turned: bool) -> str:
    recipe, outcome = kept[name]
    each = outcome.findings[place]
    each = _turn(each) if turned else each
    withdrawn = ", withdrawn" if recipe.withdrawn else ""
    return f"[{name}](#{name}): {describe_pair(each)}: {format_value(each)}, {list_cells(each, recipe)[2]}{withdrawn}"


def _turn(each: Finding) -> Finding:
    """The finding with its arms swapped."""
    assert each.against is not None and each.value is not None and each.interval is not None
    swapped = {"arm": each.against, "against": each.arm, "found": TURNED.get(each.found, each.found)}
    return replace(each, **swapped, value=-each.value, interval=(-each.interval[1], -each.interval[0]))


def write_decisions(kept: Kept) -> str:
    """A section: the comparisons that were made at two sizes, and how many agree."""
    made = list_decisions(kept)
    if not made:
        return f"{DECISIONS}\nNo recipe has a verdict at two sizes yet. `ladder` compares its arms at both and has not been run as it stands.\n"
    rows = [
        [
            each.source,
            f"{each.small.arm} − {each.small.against}",
            *(f"{found.found}, {found.value:+.3f}" for found in (each.small, each.large)),
            *("yes" if same else "no" for same in (each.same_sign, each.same_verdict)),
        ]
        for each in made
    ]
    table = format_markdown(("recipe", "arms", "at s", "at 4s", "same sign", "same verdict"), rows)
    signs, verdicts = (sum(each) for each in zip(*((d.same_sign, d.same_verdict) for d in made), strict=True))
    return f"{DECISIONS}\n{table}\n\nThe sign agrees in {signs} of {len(made)}, the verdict in {verdicts}.\n"


def write_cards() -> str:
    """A section: what each architecture reaches on each probe, and what it costs there."""
    header, reached = list_card_rows()
    prices = [[name, f"`{name_model(own[0])}`", *list_prices(own[0])] for name, own in read_cards().items()]
    return "\n".join(
        [
            *(CARDS, format_markdown(header, reached), ""),
            *("State of a sequence, parameters and FLOPs per token are those of mqar.", ""),
            *(format_markdown(("architecture", "zoo probe", "state", "params", "FLOPs"), prices), ""),
            *("![Levels reached by each architecture](../recipes/cards/cards.png)", ""),
        ]
    )


def write_finding(
    name: str, recipe: Experiment, outcome: ExperimentOutcome, others: Collection[ExperimentOutcome]
) -> str:
    """A section: the claim, expected beside found, the arms, and the picture."""
    held = "" if recipe.withdrawn else f" Expectations that hold: {count_held(recipe, outcome)}."
    lines = [f"## {name}", "", f"**Claim: {recipe.claim}**{held} Source: {recipe.source}."]
    lines += ["", f"**Withdrawn.** {recipe.withdrawn}"] if recipe.withdrawn else []
    lines += ["", recipe.notes] if recipe.notes else []
    lines += ["", format_markdown(FINDINGS, [list_cells(each, recipe, outcome.level) for each in outcome.findings]), ""]
    lines += [f"{each}.\n" for each in (*list_remarks(recipe, outcome), *list_unmatched(outcome))]
    lines += [format_markdown(*list_arms(recipe, outcome)), "", format_markdown(*list_costs(recipe, outcome)), ""]
    if rates := rate_table.list_rows(outcome.searches, outcome.noise):
        lines += [format_markdown(rate_table.HEADER, rates), ""]
    if outcome.speedups:
        title, header, speedups, _ = tell_speedups(recipe, outcome)
        lines += [f"{title}:", "", format_markdown(header, speedups), ""]
    took = describe_training(recipe, outcome)
    about = f"{recipe.form(False).looks[-1]} seeds per arm, at {describe_rates(recipe)} learning rates"
    lines += [f"{about}; {outcome.date}, {took}.", ""]
    registered = [describe_registration(outcome.registration, recipe), *list_shared_runs(outcome, others)]
    lines += [" ".join(f"{each}." for each in registered), ""]
    for file in sorted((recipes_dir() / "verdicts").glob(f"{name}.[ps][nv]g")):
        lines += [f"![{name}: what its runs gave](../recipes/verdicts/{file.name})", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    write_figure(make_forest(list_effects(read_kept())), recipes_dir() / "verdicts" / "effects.png")
    picture = recipes_dir() / "cards" / "cards.png"
    draw_card([replace(each, model=name, overrides=()) for name, own in read_cards().items() for each in own], picture)
