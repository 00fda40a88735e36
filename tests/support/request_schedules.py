"""Random schedules of an engine: requests that join, leave, share prompts and are preempted, each against itself alone.

The reference is a full forward without a cache over a request's tokens: at every place its sampler must choose the
token that the engine gave. By induction these are the tokens that the request gets alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from zoo.errors import ConfigError
from zoo.generation import invariants
from zoo.generation.engine import Engine, serving
from zoo.generation.prompt_towers import find_reader, find_writer
from zoo.generation.request import Request
from zoo.sampling.draws import DrawState
from zoo.sampling.options import Sampling
from zoo.sampling.sampler import Sampler

ROUNDING = 3e-4
"""Noise, in units of the largest logit, within which two choices count as a tie."""

GREEDY = Sampling()
LENGTHS = (1, 2, 4, 5, 6, 10, 15, 15, 16, 16, 17, 17, 31, 32, 33, 47, 48, 49, 64)
"""Lengths of prompts: around a page's border, and 1 to 3 times a window of 5 and of 16."""


@dataclass
class Schedule:
    """What is asked of an engine: for each step the requests that join before it, and the requests that leave."""

    options: dict[str, Any]
    joins: dict[int, list[Request]]
    aborts: dict[int, int]  # by step, the number of a request
    preempts: set[int]  # steps before which the sequence that started last gives up its row
    interval: int
    drafted: bool = False  # a draft model guesses: what is drawn keeps its distribution, not its seed's text


@dataclass
class Outcome:
    """What came of it: each request's tokens by sample, how samples ended, and what went wrong on the way."""

    requests: dict[int, Request] = field(default_factory=dict)
    tokens: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    logprobs: dict[tuple[int, int], list[Any]] = field(default_factory=dict)
    prompts: dict[int, Any] = field(default_factory=dict)  # log-probabilities of a request's prompt
    ended: dict[tuple[int, int], str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    preemptions: int = 0
    hits: int = 0
    steps: int = 0


# ---------------------------------------------------------------- making one


def make_schedule(seed: int, vocab: int, requests: int = 16, guides: Sequence[Any] = ()) -> Schedule:
    """Make a schedule of up to so many requests, some of which follow one of the compiled grammars `guides`."""
    rng = random.Random(seed)
    stem = [rng.randrange(vocab) for _ in range(64)]
    stems = [stem, [*stem[16:32], *stem[16:]]]  # different first pages, and the same pages after them
    count = rng.randint(1, requests)
    joins: dict[int, list[Request]] = {}
    for copy in range(count):
        joins.setdefault(rng.choice((0, 0, rng.randint(0, 40))), []).append(_request(rng, stems, vocab, copy))
    aborts = {rng.randint(1, 60): rng.randrange(count) for _ in range(rng.choice((0, 0, 1, 3)))}
    tight = rng.random() < 0.5
    options = {
        "rows": rng.choice((2, 3, 5)),
        "tokens": 92,
        "source": 64,
        "budget": rng.choice((1, 7, 7, 64, 64)),
        "overcommit": rng.choice((2.0, 3.0, 5.0)) if tight else 1.0,
        "reuse": rng.random() < 0.7,
        "speculate": rng.choice((0, 0, 3)),
    }
    preempts = {rng.randint(1, 60) for _ in range(rng.choice((0, 2, 6)))}
    made = Schedule(options, joins, aborts, preempts, interval=rng.choice((16, 32, 256)))
    return _enrich(made, random.Random(f"{seed}, and more"), guides)


def _enrich(made: Schedule, rng: random.Random, guides: Sequence[Any]) -> Schedule:
    """Ask for log-probabilities and grammars too, and let a model guess in half of the schedules with speculation. The
    random numbers are others, so that a seed's prompts and steps stay what they were."""
    made.drafted = made.options["speculate"] > 0 and rng.random() < 0.5
    for batch in made.joins.values():
        for place, request in enumerate(batch):
            asked: dict[str, Any] = {"logprobs": rng.choice((None, None, 0, 2))}
            asked["prompt_logprobs"] = rng.choice((None, None, None, 1))
            guide = rng.choice(guides) if guides and rng.random() < 0.3 else None
            if request.n_beams == 1:
                batch[place] = replace(request, guide=guide, **asked)
    return made


def _request(rng: random.Random, stems: list[list[int]], vocab: int, copy: int) -> Request:
    """A prompt that begins as others do, up to any place; greedy or drawn, of one sample or several."""
    length = rng.choice(LENGTHS)
    shared = rng.choice((0, length, length - 1, 16, 17, 32, 48))
    ids = [*rng.choice(stems)[:shared], *(rng.randrange(vocab) for _ in range(64))][:length]
    drawn = Sampling(temperature=rng.choice((0.7, 1.2)), top_p=rng.choice((None, 0.9)), seed=rng.randrange(3))
    stops = frozenset(rng.sample(range(vocab), rng.choice((0, 0, 3))))
    if rng.random() < 0.1:
        beams = {"n": rng.choice((1, 2)), "n_beams": 2}
        return Request(ids=ids, max_new_tokens=rng.choice((3, 8)), stop_ids=stops, **beams)
    sampling = rng.choice((GREEDY, GREEDY, drawn))
    new, samples = rng.choice((1, 3, 8, 20, 28)), rng.choice((1, 1, 1, 2, 3))
    return Request(ids=ids, max_new_tokens=new, sampling=sampling, stop_ids=stops, n=samples, copy=copy % 3)


# ---------------------------------------------------------------- running one


def run_schedule(model: Any, schedule: Schedule, draft: Any = None) -> Outcome:
    """Run a schedule; the engine's invariants are checked after every step, and its pools at the end. `draft` is the
    model that guesses where the schedule says that one does."""
    drafting = {"draft": draft} if schedule.drafted else {}
    engine, found, step = Engine(model, **schedule.options, **drafting), Outcome(), 0
    if engine.prefixes is not None:
        engine.prefixes.interval = schedule.interval
    _watch_budget(engine, found)
    with serving(model):
        while engine.busy or any(at >= step for at in schedule.joins):
            for request in schedule.joins.get(step, ()):
                _join(engine, request, found)
            if step in schedule.aborts:
                _take(found, engine.abort(schedule.aborts[step]))
            if step in schedule.preempts and engine.scheduler.running:
                engine.scheduler.preempt(engine.scheduler.running[-1])
            _take(found, engine.step())
            found.faults += invariants.check(engine)
            found.faults += check_guesser(engine)
            step += 1
            if found.faults or step > 3000:
                found.faults += [] if found.faults else ["schedule: does not end"]
                break
    _finish(engine, found, step)
    return found


def check_guesser(engine: Engine) -> list[str]:
    """List the rows of a draft model that no longer have what their next token sees."""
    rows = getattr(engine.proposer, "_rows", {})
    return [
        f"draft of request {each.request}: {row.dropped[number]} pages are gone, its next token sees token {first}"
        for each, row in rows.items()
        for number, group in enumerate(row.store.groups)
        if row.dropped[number] * row.store.page > (first := group.first_seen(row.length))
    ]


def _join(engine: Engine, request: Request, found: Outcome) -> None:
    """Queue a request; beams that need more pages at once than there are, are refused at the door."""
    if engine.seq2seq and request.prompt_logprobs is not None:
        request = replace(request, prompt_logprobs=None)
    try:
        number = engine.add(request)
    except ConfigError as error:
        if request.n_beams == 1 or not str(error).startswith("memory: "):
            raise
        return
    found.requests[number] = request


def _watch_budget(engine: Engine, found: Outcome) -> None:
    """Check every plan of an engine. Some parts of prompts cannot be cut: tiles, and a prefix that sees itself. Rows of
    a model whose positions end a cache come whole, budget or not."""
    plan = engine.scheduler.plan
    cut = engine.scheduler.tile is None and not getattr(engine.writer, "prefix_lm", False)

    def planned():
        chunks = plan()
        counts = [(each.count, each.sequence.left > 1) for each in chunks if not each.whole]
        found.faults += invariants.check_budget(counts, engine.scheduler.budget, cut=cut)
        return chunks

    engine.scheduler.plan = planned


def _take(found: Outcome, events: list[Any]) -> None:
    for event in events:
        sample = event.request, event.sample
        if sample in found.ended:
            found.faults.append(f"events: {sample} goes on after its end")
        if event.token is not None:
            found.tokens.setdefault(sample, []).append(event.token)
            found.logprobs.setdefault(sample, []).append(event.logprob)
        if event.prompt is not None:
            found.prompts[event.request] = event.prompt
        if event.finished:
            found.ended[sample] = event.finished


def _finish(engine: Engine, found: Outcome, steps: int) -> None:
    found.steps, found.preemptions = steps, engine.scheduler.preemptions
    if found.faults:
        return
    found.faults += invariants.check_drained(engine)
    for kept in (engine.prefixes, engine.sources):
        if kept is not None:
            found.hits += kept.hits
            kept.forget()
    found.faults += invariants.check_initial(engine)


# ---------------------------------------------------------------- alone


def find_faults(
    served: Any, schedule: Schedule, draft: Any = None, models: Mapping[str | None, Any] | None = None
) -> tuple[list[str], Outcome]:
    """Run a schedule and list the faults: broken invariants, wrong ends, tokens or log-probabilities that no request
    gets alone. `models` are those that requests of each adapter get alone."""
    outcome = run_schedule(served, schedule, draft)
    faults = list(outcome.faults)
    for number, request in outcome.requests.items() if not faults else ():
        model = served if models is None else models[request.adapter]
        if request.n_beams > 1 and outcome.ended[number, 0] != "aborted":
            found = {sample: outcome.tokens.get((number, sample), []) for sample in range(request.n)}
            if found != (alone := search_alone(model, request)):
                faults.append(f"request {number}: its beams are {found}, alone they are {alone}")
        for sample in range(request.n) if request.n_beams == 1 else ():
            tokens, end = outcome.tokens.get((number, sample), []), outcome.ended.get((number, sample))
            drawn_freely = schedule.drafted and request.sampling.temperature > 0
            wrong = (
                check_alone(model, request, sample, tokens, any_draw=drawn_freely)
                or _check_end(request, tokens, end)
                or check_logprobs(model, request, tokens, outcome.logprobs.get((number, sample), []))
                or check_prompt(model, request, outcome.prompts.get(number) if tokens else None)
            )
            if wrong:
                faults.append(f"request {number}, sample {sample} after {len(request.ids)} tokens: {wrong}")
    return faults, outcome


def search_alone(model: Any, request: Request) -> dict[int, list[int]]:
    """The best beams of a request by full forwards, under transformers' rules without early stopping."""
    width, going, done = request.n_beams, [(0.0, [])], []
    while going:
        ranked = [
            (score + chance, [*tokens, token])
            for score, tokens in going
            for token, chance in enumerate(_next_chances(model, request, tokens))
        ]
        ranked = sorted(ranked, key=lambda each: -each[0])[: (1 + len(request.stop_ids)) * width]
        ends = [tokens[-1] in request.stop_ids or len(tokens) == request.max_new_tokens for _, tokens in ranked]
        done += [_value(request, *each) for each, end in zip(ranked[:width], ends, strict=False) if end]
        done = sorted(done, key=lambda each: -each[0])[:width]
        going = [each for each, end in zip(ranked, ends, strict=True) if not end][:width]
        if going and len(done) == width and _value(request, *going[0])[0] <= done[-1][0]:
            break
    return {sample: tokens for sample, (_, tokens) in enumerate(done[: request.n])}


def _next_chances(model: Any, request: Request, tokens: list[int]) -> list[float]:
    return full_logits(model, request.ids, [*tokens, 0])[-1].log_softmax(-1).tolist()


def _value(request: Request, score: float, tokens: list[int]) -> tuple[float, list[int]]:
    return score / len(tokens) ** request.length_penalty, tokens


def _check_end(request: Request, tokens: list[int], end: str | None) -> str | None:
    stopped = [place for place, token in enumerate(tokens) if token in request.stop_ids]
    if end == "aborted":
        return None
    ended = request.guide is not None and follow_guide(request, tokens).finished
    wanted = "stop" if stopped or ended else "length"
    if end != wanted or (stopped and stopped != [len(tokens) - 1]):
        return f"ended by {end}, stop ids at {stopped} of {len(tokens)} tokens"
    if end == "length" and len(tokens) != request.max_new_tokens:
        return f"ended after {len(tokens)} tokens, {request.max_new_tokens} were asked for"
    return None


def follow_guide(request: Request, tokens: list[int]) -> Any:
    """Where these tokens lead in a request's grammar."""
    matcher = request.guide.start()
    for token in tokens:
        matcher.consume(token)
    return matcher


def check_alone(model: Any, request: Request, sample: int, tokens: list[int], *, any_draw: bool = False) -> str | None:
    """Where these tokens are not those that the request gets by full forwards alone; None if they are. With `any_draw`
    a token may be any that could have been drawn there."""
    start = [model.spec.start_id] if find_reader(model.spec) is not find_writer(model.spec) else None
    options: dict[str, Any] = {"context": start or list(request.ids), "guide": request.guide}
    state = DrawState(request.sampling, request.ids, request.copy + sample, stop_ids=request.stop_ids, **options)
    if not tokens:
        return None
    logits, sampler = full_logits(model, request.ids, tokens), Sampler()
    for place, token in enumerate(tokens):
        scores = logits[place : place + 1]
        chosen = sampler.choose(scores, [state])[0]
        if any_draw and sampler.find_shares(scores, [state])[0, token] > 0:
            chosen = token
        if chosen != token and not _is_tie(scores, state, token):
            return f"token {place} is {token}, alone it is {chosen}"
        state.advance(token)
    return None


def _is_tie(scores: torch.Tensor, state: DrawState, token: int) -> bool:
    """Whether rounding decides: some noise as small as rounding makes this token the choice."""
    generator, size = torch.Generator().manual_seed(0), ROUNDING * float(scores.abs().max())
    noisy = (scores + size * torch.randn(scores.shape, generator=generator) for _ in range(8))
    return any(Sampler().choose(each, [state])[0] == token for each in noisy)


def check_logprobs(model: Any, request: Request, tokens: list[int], found: list[Any]) -> str | None:
    """Where log-probabilities of new tokens are not those of full forwards."""
    if request.logprobs is None or not tokens:
        return None if not any(found) else "log-probabilities that nobody asked for"
    return _compare(full_logits(model, request.ids, tokens), tokens, found, request.logprobs)


def check_prompt(model: Any, request: Request, found: Any) -> str | None:
    """Where log-probabilities of a prompt are not those of a full forward; None too if there are none yet."""
    writer = find_writer(model.spec)
    if found is None:
        return None
    if request.prompt_logprobs is None or len(found) != len(request.ids) or found[0] is not None:
        return f"{len(found)} log-probabilities of a prompt of {len(request.ids)} tokens"
    options = {"prefix": torch.tensor([len(request.ids)])} if getattr(writer, "prefix_lm", False) else {}
    with torch.inference_mode():
        logits = model(torch.tensor([list(request.ids)]), **options).logits[0, :-1]
    return _compare(logits, request.ids[1:], found[1:], request.prompt_logprobs)


def _compare(logits: torch.Tensor, tokens: Any, found: Any, top: int) -> str | None:
    if not len(tokens):
        return None
    bound, chances = 4 * ROUNDING * float(logits.abs().max()), logits.log_softmax(-1)
    for place, (token, each) in enumerate(zip(tokens, found, strict=True)):
        wanted = [float(chances[place, token]), *chances[place].topk(top).values.tolist()]
        given = [each.value, *(value for _, value in each.top)]
        if len(given) != len(wanted) or max(abs(a - b) for a, b in zip(given, wanted, strict=True)) > bound:
            return f"log-probabilities {given} at {place}, alone {wanted}"
    return None


# ---------------------------------------------------------------- to the bit


def find_bit_faults(model: Any, schedule: Schedule) -> tuple[list[str], Outcome]:
    """Run a schedule in deterministic mode and list what differs from each request alone: a token, or any bit of its
    log-probability."""
    options = schedule.options | {"speculate": 0, "deterministic": True}
    joins = {
        step: [request if request.n_beams > 1 else replace(request, logprobs=1) for request in batch]
        for step, batch in schedule.joins.items()
    }
    outcome = run_schedule(model, replace(schedule, options=options, joins=joins, drafted=False))
    faults = list(outcome.faults)
    for number, request in outcome.requests.items() if not faults else ():
        alone = Engine(model, rows=request.n_beams, tokens=92, source=64, reuse=False, deterministic=True)
        found: dict[int, list[Any]] = {}
        for event in alone.run([request]):
            found.setdefault(event.sample, []).append((event.token, event.logprob))
        for sample in range(request.n):
            key = number, sample
            got = [*zip(outcome.tokens.get(key, []), outcome.logprobs.get(key, []), strict=True)]
            if got != found[sample][: len(got)] or (outcome.ended[key] != "aborted" and got != found[sample]):
                place = next((n for n, (a, b) in enumerate(zip(got, found[sample], strict=False)) if a != b), len(got))
                faults.append(f"request {number}, sample {sample}: differs in bits from token {place} on")
    return faults, outcome


@torch.inference_mode()
def full_logits(model: Any, ids: Any, tokens: list[int]) -> torch.Tensor:
    """The logits [new, V] of which each token is chosen, by full forwards."""
    writer = find_writer(model.spec)
    if writer is not model.spec:
        whole = [model.spec.start_id, *tokens]
        out = model(torch.tensor([list(ids)]), decoder_input_ids=torch.tensor([whole[:-1]]))
        return out.logits[0]
    whole, first = [*ids, *tokens], len(ids)
    options = {"prefix": torch.tensor([first])} if getattr(writer, "prefix_lm", False) else {}
    if writer.cacheable_until is None:
        return model(torch.tensor([whole[:-1]]), **options).logits[0, first - 1 :]
    steps = [model(torch.tensor([whole[:end]]), **options).logits[0, -1] for end in range(first, len(whole))]
    return torch.stack(steps)
