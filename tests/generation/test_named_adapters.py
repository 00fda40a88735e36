"""Requests that name adapters: in one engine over one base, each gets what it gets from its own adapted model alone."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import zoo
from support.adapted_models import over, save_llama
from support.packaged_specs import make_loud
from support.quantised_storage import quantise_folder
from support.request_schedules import find_faults, make_schedule
from support.tiny_generators import KINDS, make
from zoo.checkpoint import store
from zoo.checkpoint.quantised.bitsandbytes import FourBit
from zoo.cli import run
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import CheckpointError, ConfigError
from zoo.run.adapters import Adapters, attach_adapters, split_adapters
from zoo.run.held_weights import HeldWeight, hold_weight, list_held_weights
from zoo.run.served_adapters import ServedAdapters
from zoo.training.start.lora import list_products

# ---------------------------------------------------------------- each row by itself


def adapt(model, rank: int, seed: int, dora: bool = False):
    """A copy of a model with a random adapter, as in training, on every second of its products."""
    products = [each for each in list_products(model.spec, model.spec.d_model) if not (each.refused or each.stacked)]
    own, paths = copy.deepcopy(model), tuple(each.path for each in products[seed % 2 :: 2])
    attach_adapters(own, Adapters(rank, 1.5 * rank, 0.0, paths, dora=dora))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, each in own.named_parameters():
            if ".lora." in name:
                noise = torch.randn(each.shape, generator=generator)
                each.copy_(each * (1 + 0.3 * noise) if name.endswith(".m") else noise * each.shape[-1] ** -0.5)
    return own.eval()


def serve(model, **adapters) -> tuple:
    """A copy of a model that serves adapters, and the models that their requests get alone."""
    served = copy.deepcopy(model)
    served.__dict__["served"] = ServedAdapters(served)
    for name, each in adapters.items():
        served.served.add(name, each.adapters, split_adapters(each.state_dict())[1])
    return served, {None: model, **adapters}


def choose_adapters(schedule, names, seed: int):
    """A schedule whose requests name adapters at random."""
    rng = random.Random(f"{seed}, adapters")
    joins = {at: [replace(each, adapter=rng.choice(names)) for each in group] for at, group in schedule.joins.items()}
    return replace(schedule, joins=joins)


def run_mixed(kind: str, seeds, requests: int) -> int:
    """Run schedules of a kind whose requests name one of two adapters or the base; how many tokens were reused."""
    served, models = serve(make(kind), one=adapt(make(kind), 2, 4), two=adapt(make(kind), 5, 7))
    vocab, hits = min(tower.vocab_size for tower in served.spec.towers().values()), 0
    for seed in seeds:
        schedule = choose_adapters(make_schedule(seed, vocab, requests), [None, "one", "two"], seed)
        faults, outcome = find_faults(served, schedule, models=models)
        assert not faults, f"schedule {seed}: {faults[0]}"
        hits += outcome.hits
    return hits


@pytest.mark.parametrize("kind", ["attention=gqa", "gemma-like", "mamba2 and gqa", "t5"])
def test_a_prompt_reuses_the_keys_of_its_own_adapter_alone(kind):
    served, models = serve(make(kind), one=adapt(make(kind), 2, 4), two=adapt(make(kind), 5, 7))
    ids = torch.randint(40, (1, 49), generator=torch.Generator().manual_seed(5))
    alone = {name: zoo.generate(model, ids, 6)[0, -6:].tolist() for name, model in models.items()}
    engine, cached = zoo.Engine(served, rows=8, tokens=92, source=64), []
    for name in ("one", "two", None, "one"):
        request = zoo.Request(ids=ids[0].tolist(), max_new_tokens=6, adapter=name)
        assert [event.token for event in engine.run([request])] == alone[name]
        cached.append((engine.prefixes or engine.sources).hits)
    assert cached == [0, 0, 0, 49 if kind == "t5" else 48]
    assert len({*map(str, alone.values())}) == 3


OFTEN = ["attention=gqa", "attention=mla", "gemma-like", "mamba2 and gqa", "averaged moe", "csa", "looped", "t5", "ntk"]


@pytest.mark.parametrize("kind", [kind for kind in OFTEN if kind in KINDS])
def test_a_request_gets_beside_other_adapters_what_it_gets_from_its_own_alone(kind):
    run_mixed(kind, [KINDS.index(kind)], 8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_request_of_every_kind_gets_in_twenty_schedules_what_it_gets_from_its_own_adapter(kind):
    run_mixed(kind, range(3000, 3020), 12)


def generate(model, adapter=None) -> list[list[int]]:
    ids = torch.randint(40, (3, 7), generator=torch.Generator().manual_seed(1))
    return zoo.generate(model, ids, 12, adapter=adapter).tolist()


def generate_mixed(model, names, **options) -> list[list[int]]:
    """What `generate` gives, of rows that name their adapters."""
    ids = torch.randint(40, (3, 7), generator=torch.Generator().manual_seed(1)).tolist()
    engine, tokens = zoo.Engine(model, rows=3, tokens=32, **options), [list(row) for row in ids]
    for row, name in zip(ids, names, strict=True):
        engine.add(zoo.Request(ids=row, max_new_tokens=12, adapter=name))
    for event in engine.run():
        tokens[event.request].append(event.token)
    return tokens


def hold(model, layout):
    """The model with its layers' matrices held as `layout` stores them."""
    for path, module in list(model.named_modules()):
        if "blocks." in path and isinstance(module, torch.nn.Linear):
            kind, parts = layout.encode(module.weight.detach())
            hold_weight(module, HeldWeight(parts, kind.decode, torch.float32))
    return model


@pytest.mark.parametrize("form", ["dora", "nf4", "prepared", "deterministic"])
def test_the_base_may_be_quantised_or_prepared_and_rows_may_be_scaled_or_kept_apart(form):
    base = make("attention=gqa")
    base = hold(copy.deepcopy(base), FourBit) if form == "nf4" else base
    one, two = adapt(make("attention=gqa"), 3, 4, dora=form == "dora"), adapt(make("attention=gqa"), 3, 5)
    served, models = serve(base, one=one, two=two)
    if form == "nf4":  # over the same rounded base
        models = {name: hold(each, FourBit) if name else each for name, each in models.items()}
    if form in ("prepared", "deterministic"):
        zoo.prepare(served, way="plain", keep=True)
    names = ["two", None, "one"]
    alone = [generate(models[name])[row] for row, name in enumerate(names)]
    assert generate_mixed(served, names, deterministic=form == "deterministic") == alone
    assert len({*map(str, (generate(models[name]) for name in names))}) == 3  # the adapters do change the text
    assert [generate(served, name)[row] for row, name in enumerate(names)] == alone


def test_the_base_is_in_memory_once_and_is_itself_outside_requests_that_name_an_adapter(tmp_path):
    base = store.save_model(copy.deepcopy(make("attention=gqa")).bfloat16(), tmp_path / "base")
    whole = store.load(base, "fp32")
    folders = {name: over(base, adapt(whole, 3, seed), tmp_path / name) for seed, name in enumerate(("one", "two"))}
    plain, served = zoo.load(base), zoo.load(base, adapters=folders)
    held = {each.data_ptr(): each.nbytes for each in served.state_dict().values()}
    assert sum(held.values()) == sum(each.nbytes for each in plain.state_dict().values())
    generate_mixed(served, ["one", None, "two"])
    assert not any(module._forward_hooks for module in served.modules())
    for name, each in plain.state_dict().items():
        assert torch.equal(each, served.state_dict()[name])
    assert generate(served) == generate(plain)
    path, product = next(iter(served.served.named["one"].items()))
    own, merged = (each.get_submodule(path).weight for each in (plain, zoo.load(folders["one"], "fp32")))
    assert_close(own.float() + product.b.float() @ product.a.float(), merged, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_quantised_base_is_held_as_it_is_stored_and_computes_what_it_computes_alone(method, tmp_path):
    base = quantise_folder(save_llama(tmp_path / "base", torch.float16, hidden_size=64, intermediate_size=96), method)
    plain = zoo.load(base)
    folders = {name: over(base, adapt(plain, 3, seed), tmp_path / name) for seed, name in enumerate(("one", "two"))}
    served, whole = zoo.load(base, adapters=folders), zoo.load(base, "fp16", adapters=folders)
    stored = load_file(base / "model.safetensors").items()
    packed = sum(each.nbytes for name, each in stored if "_proj" in name)
    assert sum(each.nbytes for each in list_held_weights(served)) == packed
    assert not any(each.ndim > 1 for name, each in served.named_parameters() if "blocks" in name)
    for name in (None, "one", "two"):
        assert generate(served, name) == generate(whole, name)
    assert generate(served) == generate(plain) != generate(served, "one")
    with pytest.raises(CheckpointError, match="model: holds weights as they are stored"):
        zoo.export(served, tmp_path / "out", verify=False)


# ---------------------------------------------------------------- the command line, and what is refused


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A folder with a model of bytes, `base`, and checkpoints of adapters over it, `one` and `two`."""
    monkeypatch.chdir(tmp_path)
    shape = ["vocab_size=257", "d_model=32", "n_layers=2", "n_heads=4", "n_kv_heads=2", "head_dim=8", "d_ff=48"]
    tokenizer = make_byte_tokenizer()
    base = store.save_model(
        make_loud(zoo.build("llama-tiny", shape, device="cpu"), (257,)), tmp_path / "base", tokenizer
    )
    for seed, name in enumerate(("one", "two")):
        over(base, adapt(store.load(base), 4, seed), tmp_path / name, tokenizer=tokenizer)
    return tmp_path


def test_lines_of_a_file_name_adapters_and_get_their_texts(saved, capsys):
    lines = [{"prompt": "def f(", "adapter": "one"}, {"prompt": "def f("}, {"prompt": "def f(", "adapter": "two"}]
    (saved / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ["--max-new-tokens", "8", "--temperature", "0", "--ignore-eos"]
    given = ["--adapter", "one=one", "--adapter", "two=two", "--out", "out.jsonl"]
    assert run(["generate", "--checkpoint", "base", "--prompt-file", "prompts.jsonl", *given, *asked]) == 0
    found = [json.loads(line) for line in (saved / "out.jsonl").read_text().splitlines()]
    texts = [each["text"] for each in sorted(found, key=lambda each: each["index"])]
    for text, folder in zip(texts, ("one", "base", "two"), strict=True):
        capsys.readouterr()
        assert run(["generate", "--checkpoint", folder, "--prompt", "def f(", *asked]) == 0
        assert capsys.readouterr().out.rstrip("\n") == text.rstrip("\n")
    assert len({*texts}) == 3


def test_what_requests_cannot_choose_is_refused_in_one_line(saved, refused):
    base = store.load(saved / "base")
    over(saved / "base", adapt(base, 4, 0), saved / "three", trained=("norm.weight",))
    with torch.no_grad():
        base.norm.weight += 1
    over(saved / "base", adapt(base, 4, 0), saved / "normed", trained=("norm.weight",))
    other = store.save_model(base, saved / "other")
    over(other, adapt(base, 4, 0), saved / "of_other")
    store.save_model(adapt(base, 4, 0), saved / "whole")
    assert zoo.load("base", adapters={"three": "three"}).served.named.keys() == {"three"}  # equal to the base's norm
    for name, fault in {
        "base": "has no adapters (a checkpoint of a run with lora=…, or peft's)",
        "whole": "has a whole model beside its adapters (a checkpoint that names its base)",
        "of_other": f"is for {other}, and base has other weights (the model that it began with)",
        "normed": "has weights trained whole, norm.weight (zoo convert merges them)",
    }.items():
        with pytest.raises(ConfigError) as error:
            zoo.load("base", adapters={"x": name, "three": "three"})
        assert error.value.faults == [f"adapters: x: {name} {fault}"]
    model = zoo.load("base", adapters={"three": "three"})
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(ConfigError, match=r"^adapter: there is no 'there' \(did you mean 'three'\?\)$"):
        zoo.generate(model, ids, 3, adapter="there")
    with pytest.raises(ConfigError, match=r"^adapter: is 'x', and the model has none \(zoo.load\(BASE, adapters="):
        zoo.generate(store.load("base"), ids, 3, adapter="x")
    line = 'adapter: no prompt names one ("adapter": "NAME" in a line of JSON; --checkpoint DIR for one alone)'
    asked = ["generate", "--checkpoint", "base", "--prompt", "x"]
    assert refused(*asked, "--adapter", "three=three") == [line]


@pytest.mark.parametrize(
    ("kind", "what"),
    [("ffn=moe", "is of stacked experts"), ("attention=mla", "is also read as a plain weight")],
)
def test_adapters_of_experts_and_of_weights_that_are_read_plainly_are_refused_by_name(kind, what, tmp_path):
    model = copy.deepcopy(make(kind))
    base, products = store.save_model(model, tmp_path / "base"), list_products(model.spec, model.spec.d_model)
    path = next(each.path for each in products if each.stacked or "plain weight" in (each.refused or ""))
    attach_adapters(model, Adapters(2, 4.0, 0.0, (path,)))
    folder = over(base, model, tmp_path / "adapted")
    with pytest.raises(ConfigError) as error:
        zoo.load(base, adapters={"x": folder})
    assert error.value.faults == [f"adapters: x: {folder} adapts {path}, which {what} (zoo convert merges it)"]
