"""Engines with one mistake each, for test_engine_mutants.py.

Each is a rule of the engine broken by a patch, the kind of layer on which it is tried, and the check that turns red:
`alone` (tokens differ from those of a full forward), or the rule of zoo/generation/invariants.py.
"""

from hashlib import blake2b

import torch

from zoo.cache.cache import Cache
from zoo.cache.cached_row import CachedRow, list_slots
from zoo.cache.encoder_reuse import Sources
from zoo.cache.page_pool import PagePool
from zoo.cache.pool_store import LayerGroup, Store
from zoo.cache.prefix import Prefixes
from zoo.generation import beams
from zoo.generation.engine import Engine
from zoo.generation.proposals import DraftModel
from zoo.generation.scheduler import Scheduler
from zoo.sampling import speculate
from zoo.sampling.guide import Matcher

GQA, MAMBA, WINDOW, MIXED = "attention=gqa", "attention=mamba position=none", "attention=sliding window=5", "gemma-like"
MUTANTS = {}
"""By name: the patch, the kinds on which it is tried, and a pattern of the fault that is found first."""


def mutant(caught: str, *kinds: str):
    def register(patch):
        MUTANTS[patch.__name__] = patch, kinds, caught
        return patch

    return register


# ---------------------------------------------------------------- pages


@mutant("miscounted|two states", GQA)
def a_shared_page_is_freed_by_its_first_owner(patch):
    def release(self, pages):
        for page in pages:
            self.owners[page] = 1
        real(self, pages)

    real = PagePool.release
    patch.setattr(PagePool, "release", release)


@mutant("miscounted", GQA)
def a_shared_page_is_counted_twice(patch):
    def share(self, page):
        real(self, page)
        self.owners[page] += 1

    real = PagePool.share
    patch.setattr(PagePool, "share", share)


@mutant("two states|free page has one|named for other|kept for reuse", GQA)
def a_page_that_is_taken_keeps_its_name(patch):
    def take(self, count, after=None):
        names, pages = dict(self._keys), dict(self._pages)
        taken = real(self, count, after)
        self._keys, self._pages = names, pages
        return taken

    real = PagePool.take
    patch.setattr(PagePool, "take", take)


@mutant("will be written", GQA, MIXED)
def a_page_is_named_before_it_is_full(patch):
    def name(self, names, ids):
        page = self.store.page
        real(self, names, [*ids, *[0] * (page - 1)])

    def keep(self, row, names, before, last):
        length, row.length = row.length, min(row.length + self.store.page - 1, len(row.pages[self.full[0]]) * 16)
        for number in range(before // 16, min(row.length // 16, len(names))):
            for group in self.full:
                self.store.pools[group].keep(row.pages[group][number], names[number])
        row.length = length

    real = Prefixes.name
    patch.setattr(Prefixes, "name", name)
    patch.setattr(Prefixes, "keep", keep)


@mutant("drained|miscounted", GQA)
def a_row_that_ends_gives_back_all_pages_but_one(patch):
    def release(self):
        for own in self.pages:
            del own[:1]
        real(self)

    real = CachedRow.release
    patch.setattr(CachedRow, "release", release)


@mutant("slots", MAMBA)
def a_row_that_ends_keeps_its_slot(patch):
    def release(self):
        real(self)
        self.store.free_slots.pop()

    real = CachedRow.release
    patch.setattr(CachedRow, "release", release)


# ---------------------------------------------------------------- rows


@mutant("alone", "capacity", MAMBA)
def the_states_of_a_new_row_are_not_zeroed(patch):
    def start(self, store):
        states = [(state, state.clone()) for layer in store.layers for state in layer.states.values()]
        real(self, store)
        for state, before in states:
            state.copy_(before)

    real = CachedRow.__init__
    patch.setattr(CachedRow, "__init__", start)


@mutant("alone", WINDOW, MIXED)
def a_window_is_one_token_short(patch):
    def first_seen(self, token):
        return min(token, real(self, token) + (self.window is not None))

    real = LayerGroup.first_seen
    patch.setattr(LayerGroup, "first_seen", first_seen)


@mutant("alone", WINDOW)
def a_window_that_moves_leaves_its_keys_behind(patch):
    patch.setattr(Store, "copy", lambda self, group, sources, targets: None)


@mutant("are gone", WINDOW, MIXED)
def a_window_moves_a_page_too_far(patch):
    def slide(self, group, first, stop):
        real(self, group, first + self.store.page, stop)

    real = CachedRow.slide
    patch.setattr(CachedRow, "slide", slide)


@mutant("alone", GQA, "attention=mla")
def pages_that_do_not_follow_one_another_are_read_as_one_run(patch):
    def runs(self, group, start, stop):
        own = self.pages[group]
        if not own or stop <= start:
            return real(self, group, start, stop)
        shift = (own[0] - self.dropped[group]) * self.store.page
        most = self.store.pools[group].count * self.store.page
        return [(start + shift, stop + shift)] if stop + shift <= most else real(self, group, start, stop)

    real = CachedRow.runs
    patch.setattr(CachedRow, "runs", runs)


@mutant("alone", GQA)
def the_runs_of_a_row_are_those_it_had_before_it_was_preempted(patch):
    known = {}

    def runs(self, group, start, stop):
        key = self.store, self.slot, group, start, stop
        return known.setdefault(key, real(self, group, start, stop))

    real = CachedRow.runs
    patch.setattr(CachedRow, "runs", runs)


@mutant("are computed|alone", MAMBA)
def the_length_of_a_row_is_not_advanced(patch):
    def end(self, new):
        real(self, new)
        if len(self.rows) > 1:
            self.rows[-1].length -= 1

    real = Cache.end
    patch.setattr(Cache, "end", end)


# ---------------------------------------------------------------- reuse


@mutant("alone", GQA, MIXED)
def the_name_of_a_page_depends_on_its_own_tokens_only(patch):
    def name(self, names, ids):
        page = self.store.page
        while (len(names) + 1) * page <= len(ids):
            start = len(names) * page
            names.append(blake2b(repr(ids[start : start + page]).encode()).digest())

    patch.setattr(Prefixes, "name", name)


@mutant("alone", MAMBA, "mamba and gqa", "capacity")
def a_checkpoint_restores_no_states(patch):
    patch.setattr(Store, "copy_states", lambda self, source, target: None)


@mutant("alone", WINDOW, MIXED)
def a_checkpoint_restores_the_pages_of_another_window(patch):
    def restore(self, row, checkpoint):
        real(self, row, checkpoint)
        for group in checkpoint.pages:
            for layer in self.store.layers:
                for pool in layer.tensors.values() if self.store.group_of else ():
                    for page in row.pages[group]:
                        if len(pool) >= (page + 1) * 16 and len(pool) == self.store.pools[group].count * 16:
                            pool[page * 16 : (page + 1) * 16] = 0

    real = Prefixes._start_from
    patch.setattr(Prefixes, "_start_from", restore)


@mutant("does not end|are computed|alone|raised", GQA)
def a_prompt_is_reused_to_its_last_token(patch):
    def restore(self, row, names, most):
        real(self, row, names, most + 1)

    real = Prefixes.restore
    patch.setattr(Prefixes, "restore", restore)


# ---------------------------------------------------------------- order, and draws


@mutant("before one that came earlier", GQA)
def a_preempted_sequence_waits_behind_the_others(patch):
    def preempt(self, sequence):
        real(self, sequence)
        self.waiting.rotate(-1)

    real = Scheduler.preempt
    patch.setattr(Scheduler, "preempt", preempt)


@mutant("alone", GQA, MAMBA)
def a_preempted_sequence_goes_on_as_if_its_tokens_were_there(patch):
    def start(self, sequence, **options):
        row = real(self, sequence, **options)
        if row is not None and sequence.preempted:
            row.length = len(sequence.ids) - 1
        return row

    real = Scheduler._start
    patch.setattr(Scheduler, "_start", start)


@mutant("the budget is", GQA)
def a_step_takes_a_token_more_than_its_budget(patch):
    def plan(self):
        self.budget += 1
        try:
            return real(self)
        finally:
            self.budget -= 1

    real = Scheduler.plan
    patch.setattr(Scheduler, "plan", plan)


@mutant("queues|after its end", GQA)
def an_aborted_sequence_stays_in_its_queue(patch):
    patch.setattr(Scheduler, "remove", lambda self, sequences: None)


@mutant("alone", GQA)
def the_samples_of_a_request_draw_alike(patch):
    real = Engine._draws
    patch.setattr(Engine, "_draws", lambda self, request, ids, sample: real(self, request, ids, 0))


@mutant("alone", GQA)
def a_sequence_draws_by_the_same_number_again(patch):
    def make_draws(self, request, ids, sample):
        state = real(self, request, ids, sample)
        state.advance = lambda *tokens: None
        return state

    real = Engine._draws
    patch.setattr(Engine, "_draws", make_draws)


@mutant("alone", "bart", "t5")
def a_row_reads_the_source_of_its_neighbour(patch):
    def lay_out(self, tokens):
        where = real(self, tokens)
        if tokens is None and where is not None and len({row.source for row in self.rows}) == 1 < len(self.rows):
            where.rows = where.rows[::-1]
            where.index, where.ragged = torch.tensor([list_slots(runs) for runs in where.rows]), False
        return where

    real = Cache.lay_out_source
    patch.setattr(Cache, "lay_out_source", lay_out)


@mutant("the budget is", "prefix", "prefix window")
def prompts_that_cannot_be_cut_go_over_the_budget_together(patch):
    class Small(int):
        def __le__(self, other):
            return True

    real = Scheduler._chunk
    patch.setattr(Scheduler, "_chunk", lambda self, sequence, most: Small(real(self, sequence, most)))


@mutant("log-probabilities", GQA, MIXED)
def a_prompt_that_is_read_again_keeps_the_log_probabilities_it_had(patch):
    def preempt(self, sequence):
        scores = list(sequence.scores)
        real(self, sequence)
        sequence.scores = scores

    real = Scheduler.preempt
    patch.setattr(Scheduler, "preempt", preempt)


# ---------------------------------------------------------------- sources


@mutant("alone|log-probabilities|raised KeyError", "bart", "t5")
def a_source_is_known_by_the_tokens_of_each_page(patch):
    def name(self, source):
        starts = range(0, len(source), self.page)
        return [blake2b(repr((start, source[start : start + self.page])).encode()).digest() for start in starts]

    patch.setattr(Sources, "name", name)


@mutant("are kept for reuse", "t5")
def a_source_that_is_there_is_read_again(patch):
    def restore(self, row, names, tokens):
        real(self, row, names, tokens)
        row.source = 0

    real = Sources.restore
    patch.setattr(Sources, "restore", restore)


@mutant("other names", "t5", "modern")
def rows_of_one_source_that_start_together_each_read_it(patch):
    patch.setattr(Scheduler, "_awaits", lambda self, sequence: False)


@mutant("are not all", "t5")
def a_source_that_is_shared_is_not_counted(patch):
    def restore(self, row, names, tokens):
        self.pool.share, share = lambda page: None, self.pool.share
        real(self, row, names, tokens)
        self.pool.share = share

    real = Sources.restore
    patch.setattr(Sources, "restore", restore)


# ---------------------------------------------------------------- drafts, and beams


@mutant("raised|draft", GQA)
def a_draft_model_keeps_the_row_of_a_sequence_that_has_ended(patch):
    patch.setattr(DraftModel, "forget", lambda self, sequence: None)


@mutant("raised", GQA, WINDOW)
def a_draft_model_keeps_its_tokens_that_do_not_hold(patch):
    patch.setattr(DraftModel, "report", lambda self, sequence, proposed, accepted: None)


@mutant("alone|are computed", GQA, MIXED)
def a_draft_is_accepted_to_a_token_that_does_not_hold(patch):
    def agree(draft, chosen):
        return [*draft[:1], *real(draft, chosen)[1:]]

    real = speculate._agree
    patch.setattr(speculate, "_agree", agree)


@mutant("alone|raised", GQA)
def a_guess_does_not_follow_the_grammar(patch):
    def ahead(self, draft):
        return [self, *([self] * len(draft))]

    patch.setattr(Matcher, "ahead", ahead)


@mutant("alone", MAMBA, "capacity")
def a_recurrent_row_keeps_the_states_of_a_draft_that_does_not_hold(patch):
    def take_back(self, ready, tokens, saved):
        for chunk, new in zip(ready, tokens, strict=True):
            chunk.sequence.row.length -= len(chunk.draft) + 1 - len(new)
        self.store.free_slots += saved.values()

    patch.setattr(Engine, "_take_back", take_back)


@mutant("are computed|alone|does not end", GQA, WINDOW)
def a_row_keeps_a_token_of_a_draft_that_does_not_hold(patch):
    def take_back(self, ready, tokens, saved):
        real(self, ready, tokens, saved)
        for chunk, new in zip(ready, tokens, strict=True):
            chunk.sequence.row.length += len(chunk.draft) >= len(new)

    real = Engine._take_back
    patch.setattr(Engine, "_take_back", take_back)


@mutant("beams are", MAMBA, GQA)
def a_beam_that_branches_leaves_what_it_wrote_behind(patch):
    def copy(source, target, start):
        target.length = source.length

    patch.setattr(beams, "copy_row", copy)
