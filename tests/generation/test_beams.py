"""Beam search in the engine against transformers' own, several requests at once."""

import random

import pytest
import torch
import transformers

import zoo
from support.tiny_generators import make
from zoo.errors import ConfigError
from zoo.generation.engine import Engine
from zoo.generation.invariants import ensure_drained
from zoo.generation.passes import serving
from zoo.generation.request import Request
from zoo.sampling.options import Sampling

VOCAB, STOP = 60, 1
SEQ2SEQ = {"vocab_size": VOCAB, "d_model": 32, "pad_token_id": 0, "eos_token_id": STOP, "decoder_start_token_id": 0}


def t5():
    small = {"d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "tie_word_embeddings": False}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**SEQ2SEQ, **small))


def bart():
    sides = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}
    small = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()}
    config = transformers.BartConfig(**SEQ2SEQ, **small, max_position_embeddings=64, bos_token_id=2)
    config.forced_eos_token_id = None
    return transformers.BartForConditionalGeneration(config)


def llama():
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, **small, num_key_value_heads=2, eos_token_id=STOP, bos_token_id=2
    )
    return transformers.LlamaForCausalLM(config)


def mistral():
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.MistralConfig(
        vocab_size=VOCAB, **small, num_key_value_heads=2, sliding_window=6, eos_token_id=STOP, bos_token_id=2
    )
    return transformers.MistralForCausalLM(config)


def mamba():
    config = transformers.MambaConfig(
        vocab_size=VOCAB, hidden_size=32, state_size=4, num_hidden_layers=2, eos_token_id=STOP, bos_token_id=2
    )
    return transformers.MambaForCausalLM(config)


@pytest.fixture(scope="module", params=[t5, bart, llama, mistral, mamba], ids=lambda make: make.__name__)
def pair(request, tmp_path_factory):
    """A random model of transformers, whose choices are clear, and ours with its weights."""
    torch.manual_seed(3)
    theirs = request.param().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25)
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return theirs, zoo.load(folder, device="cpu", dtype="fp32").eval()


def expected(theirs, ids, **options):
    """The new tokens of the best beams by transformers, without padding behind the end."""
    settings = transformers.GenerationConfig(pad_token_id=0, eos_token_id=STOP, do_sample=False, **options)
    settings.decoder_start_token_id = 0 if theirs.config.is_encoder_decoder else None
    with torch.no_grad():
        rows = theirs.generate(torch.tensor([ids]), generation_config=settings).tolist()
    first = 1 if theirs.config.is_encoder_decoder else len(ids)
    found = [row[first:] for row in rows]
    return [row[: row.index(STOP) + 1] if STOP in row else row for row in found]


@pytest.mark.parametrize("seed", range(3))
def test_the_best_beams_are_those_of_transformers_with_other_requests_beside_them(pair, seed):
    theirs, ours = pair
    rnd = random.Random(seed)
    engine = Engine(ours, rows=9, tokens=48, source=16, budget=64)
    requests = {}
    for beams, kept, penalty in ((2, 1, 1.0), (4, 4, 0.6), (1, 1, 1.0), (3, 2, 1.4)):
        ids = [rnd.randrange(3, VOCAB) for _ in range(rnd.randrange(2, 14))]
        options = {"num_beams": beams, "num_return_sequences": kept, "length_penalty": penalty, "max_new_tokens": 14}
        ours_too = {"n_beams": beams, "n": kept, "length_penalty": penalty, "max_new_tokens": 14}
        number = engine.add(Request(ids=ids, stop_ids=frozenset([STOP]), **ours_too))
        if beams == 1:
            del options["length_penalty"]
        requests[number] = expected(theirs, ids, **options)
    found: dict[int, dict[int, list[int]]] = {}
    for event in engine.run():
        found.setdefault(event.request, {}).setdefault(event.sample, []).append(event.token)
    assert {number: [rows[n] for n in sorted(rows)] for number, rows in found.items()} == requests
    assert not engine.scheduler.running and len(engine.store.free_slots) == engine.store.slots


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"n_beams": 2, "n": 3}, "n_beams: 2 beams for the best 3 (as many beams as samples, at least)"),
        ({"n_beams": 12}, "n_beams: 12 beams are as many rows at once, there are 9 (fewer, or an engine of more rows)"),
        (
            {"n_beams": 2, "logprobs": 1},
            "logprobs: a beam search looks for the likeliest text (leave it out, or n_beams=1)",
        ),
        (
            {"n_beams": 2, "sampling": Sampling(temperature=1.0)},
            "temperature: a beam search looks for the likeliest text (leave it out, or n_beams=1)",
        ),
    ],
)
def test_what_a_beam_search_cannot_honour_is_refused(pair, options, line):
    engine = Engine(pair[1], rows=9, tokens=32, source=16)
    with pytest.raises(ConfigError) as refused:
        engine.add(Request(ids=[4, 5], max_new_tokens=4, **options))
    assert str(refused.value) == line


def test_a_search_that_starts_over_can_be_aborted_whichever_beam_led_before():
    """What the engine knows of a request is one sequence, and others may lead when the search is preempted."""
    model = make("prefix window")
    engine = Engine(model, rows=2, tokens=92)
    number = engine.add(Request(ids=list(range(3, 19)), max_new_tokens=40, n_beams=2))
    known = engine.scheduler.waiting[0]
    with serving(model):
        while known.beams is None or known.beams.running[0] is known:
            engine.step()
        engine.scheduler.preempt(engine.scheduler.running[-1])
        for _ in range(3):
            engine.step()
        assert [event.finished for event in engine.abort(number)] == ["aborted"]
    assert not engine.busy and not engine.scheduler.running
    ensure_drained(engine)
