"""A model made ready to serve: what it gives against what it gave before, and that undoing it leaves no trace."""

import random
import re

import pytest
import torch
from torch import nn

import zoo
from support.logit_bounds import assert_close
from support.packaged_specs import one_in
from support.tiny_models import every_choice, model_of, name
from zoo.checkpoint import store
from zoo.cli import run
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import ConfigError, ZooError
from zoo.generation.generate import generate
from zoo.run.layer import LinearModule, multiply
from zoo.run.linear import prepare, ready
from zoo.run.linear.base import EXACT, describe_processor
from zoo.run.linear.product import ReadyProduct
from zoo.run.linear.ready import check_weights
from zoo.run.linear.ways import WAYS, refuse
from zoo.text.loading import load

HERE = describe_processor()
RUNNING = [each for each, way in WAYS.items() if refuse(way, (512, 512), "float32", HERE) is None]
EXACT_WAYS = [each for each in RUNNING if WAYS[each].precision == EXACT]
LOWER_WAYS = [each for each in RUNNING if WAYS[each].precision != EXACT]

OFF = {"fp16": 5e-3, "bf16": 5e-2, "int8": 0.1, "int4": 0.6}
"""Bounds on the root of the mean squared error of a tiny model's logits over that of the logits themselves. They are
wide, as layers of 32 random channels average errors out least; a wrong scale or order of weights gives 1 and more."""

MODELS = {
    "grouped": ["attention=gqa"],
    "biased": ["attention.bias=true", "ffn=mlp", "ffn.bias=true"],
    "tied": ["head.tied=true"],
    "latent": ["attention=mla"],
    "delta": ["attention=gated_delta", "position=none"],
    "mamba": ["attention=mamba2", "position=none"],
    "two towers": ["kind=encoder_decoder", "cross=mha"],
    "gated attention": ["attention.gate=true"],
    "shared expert": ["ffn=moe", "ffn.shared={kind: gated, d_ff: 32, activation: {kind: silu}}"],
}
EVERY = pytest.mark.parametrize("model", list(MODELS))
IDS = torch.randint(0, 67, (2, 9), generator=torch.Generator().manual_seed(3))


def logits(model: nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        return (
            model(ids).logits
            if model.spec.kind != "encoder_decoder"
            else model(ids, decoder_input_ids=ids[:, :5]).logits
        )


def off(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {path: tensor.clone() for path, tensor in model.state_dict().items()}


def assert_untouched(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    """The same names in the same order, the same bits, each weight in memory of its own, no forward left behind."""
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[path], before[path]) for path in before)
    assert not any("forward" in vars(module) for module in model.modules())
    places = [parameter.untyped_storage().data_ptr() for parameter in model.parameters()]
    assert len(set(places)) == len(places)


# Exact ways


@pytest.mark.parametrize("choice", one_in(2, every_choice()), ids=name)
def test_every_choice_gives_what_it_gave_and_is_what_it_was_once_undone(choice):
    model = model_of(choice)
    before, given = snapshot(model), logits(model)
    with prepare(model, way="transposed") as done:
        assert list(model.state_dict()) == list(before) and len(done.products) > 0
        assert all(torch.equal(model.state_dict()[path], before[path]) for path in before)
        assert_close(logits(model), given)
    assert_untouched(model, before)
    assert torch.equal(logits(model), given)


@pytest.mark.parametrize("way", EXACT_WAYS)
@EVERY
def test_every_exact_way_gives_what_the_model_gave(model, way):
    model = model_of(MODELS[model])
    given, before = logits(model), snapshot(model)
    with prepare(model, way=way):
        assert_close(logits(model), given)
    assert_untouched(model, before)


@pytest.mark.parametrize("way", EXACT_WAYS)
@EVERY
def test_a_model_without_its_plain_weights_gives_the_same(model, way):
    model = model_of(MODELS[model])
    given = logits(model)
    prepare(model, way=way, keep=False)
    assert_close(logits(model), given)
    assert next(model.parameters()).device.type == "cpu"


@EVERY
def test_greedy_tokens_are_the_same(model):
    model = model_of(MODELS[model])
    wanted = generate(model, IDS, 8)
    with prepare(model, way="transposed"):
        assert torch.equal(generate(model, IDS, 8), wanted)


def test_products_of_one_input_become_one():
    """A layer of 7 products has 4: queries with keys and values, the output's, gate with up, down."""
    model = model_of(["attention=gqa", "ffn=gated"])
    with prepare(model, way="plain") as done:
        paths = {module: path for path, module in model.named_modules()}
        joined = sorted(tuple(paths[module].split(".")[-1] for module in each.modules) for each in done.products)
    assert joined == sorted([("q", "k", "v"), ("o",), ("gate", "up"), ("down",)] * 3 + [("out",)])


@EVERY
def test_on_a_gpu_products_of_one_input_become_one_without_a_second_copy(model, monkeypatch):
    """A CPU says that it is a GPU: nothing else of what is done there depends on the device."""
    model = model_of(MODELS[model])
    before, wanted = snapshot(model), logits(model)
    emptied = []
    monkeypatch.setattr(ready, "find_device", lambda _: "cuda")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    ready.make_ready(model, None, lambda line: None)
    products = model.ready.products
    assert {product.way.name for product in products} == {"plain"}
    assert all(len(product.modules) > 1 for product in products)
    assert model.ready.bytes == 0
    assert emptied  # what the allocator holds of the separate weights is free to the cache of keys
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in model.parameters()}
    assert sum(storages.values()) == sum(each.numel() * each.element_size() for each in model.parameters())
    whole, alone, compute = [], [], ReadyProduct.compute
    monkeypatch.setattr(ReadyProduct, "compute", lambda self, x: whole.append(self) or compute(self, x))
    plain = lambda x, weight, bias: alone.append(weight) or multiply(x, weight, bias)  # noqa: E731
    monkeypatch.setattr("zoo.run.layer.multiply", plain)
    assert_close(logits(model), wanted)
    assert set(whole) == set(products)
    assert not any(module.weight is weight for each in products for module in each.modules for weight in alone)
    assert all(torch.equal(tensor, before[path]) for path, tensor in model.state_dict().items())
    model.ready.undo()
    assert_untouched(model, before)


def test_queries_of_cross_attention_stay_apart_from_what_reads_the_encoder():
    model = model_of(MODELS["two towers"])
    with prepare(model, way="plain") as done:
        paths = {module: path for path, module in model.named_modules()}
        crossed = [each for each in done.products if any(".cross." in paths[module] for module in each.modules)]
        assert crossed and all(len(each.modules) == 1 for each in crossed)


def test_what_nothing_is_faster_for_is_left_alone():
    model = model_of(["attention=gqa"])
    ready_model = prepare(model)
    assert str(ready_model) == "0 products in 0 calls: 22 plain"
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.skipif("onednn" not in HERE.libraries, reason="needs oneDNN, whose sums are alike")
@pytest.mark.parametrize("weights", [None, "int8"])
def test_a_row_of_a_stable_model_has_the_same_bits_alone_and_among_others(weights):
    """Norms and attention of one token see its own row alone; what could differ is the products."""
    model = model_of(["attention=gqa"])
    done = prepare(model, weights, stable=True)
    assert done.stable
    ids = torch.randint(0, 67, (37, 1), generator=torch.Generator().manual_seed(5))
    whole = logits(model, ids)
    for rows in (1, 2, 3, 8, 17, 36):
        for start in (0, 37 - rows):
            assert torch.equal(logits(model, ids[start : start + rows]), whole[start : start + rows]), rows


def test_joined_products_answer_each_tensor_in_whatever_order_they_are_asked():
    """What attention does not do, a wrapper or a hook may: other inputs, members left out or asked twice."""
    dice = random.Random(1)
    draw = torch.Generator().manual_seed(1)
    members = [LinearModule(32, width, bias=width == 16) for width in (48, 16, 32)]
    for each in members:
        nn.Linear.reset_parameters(each)
    weights = [(member.weight.detach().clone(), None if member.bias is None else member.bias) for member in members]
    joined = ReadyProduct(members, "transposed", keep=True)
    inputs = [torch.randn(rows, 32, generator=draw) for rows in (1, 3, 3, 40)]
    with torch.inference_mode():
        for _ in range(300):
            place, x = dice.randrange(3), dice.choice(inputs)
            held = joined.take_held(place, x)
            got = joined.take(place, x) if held is None else held
            torch.testing.assert_close(got, nn.functional.linear(x, *weights[place]))


# What must stay as it was


def test_weights_changed_after_packing_count():
    model = model_of(["attention=gqa"])
    prepare(model, way="onednn" if "onednn" in RUNNING else "transposed")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    fresh = model_of(["attention=gqa"])
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.mul_(0.5)
    assert_close(logits(model), logits(fresh))


def test_a_loaded_state_counts():
    model, other = model_of(["attention=gqa"]), model_of(["attention=gqa"], seed=9)
    prepare(model, way="transposed")
    model.load_state_dict(other.state_dict())
    assert_close(logits(model), logits(other))


def test_gradients_are_those_of_the_model_unprepared():
    plain, packed = model_of(["attention=gqa"]), model_of(["attention=gqa"])
    prepare(packed, way="transposed")
    for model in (plain, packed):
        model(IDS).logits.square().mean().backward()
    for (path, one), (_, two) in zip(plain.named_parameters(), packed.named_parameters(), strict=True):
        assert torch.equal(one.grad, two.grad), path


def test_another_dtype_takes_the_plain_path():
    model = model_of(["attention=gqa"])
    prepare(model, way="transposed")
    model.double()
    given = logits(model)
    assert given.dtype == torch.float64
    assert_close(given.float(), logits(model_of(["attention=gqa"])))


def test_a_wrapped_product_keeps_its_wrapper():
    class Adapted(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base, self.low, self.high = base, nn.Linear(32, 2, False), nn.Linear(2, base.weight.shape[0], False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + self.high(self.low(x))

    model = model_of(["attention=gqa"])
    for layer in model.blocks:
        layer.attention.q = Adapted(layer.attention.q)
    given = logits(model)
    with prepare(model, way="transposed") as done:
        assert_close(logits(model), given)
        touched = {id(module) for each in done.products for module in each.modules}
        assert not any(id(layer.attention.q.base) in touched for layer in model.blocks)


def test_hooks_on_a_product_still_run():
    model, seen = model_of(["attention=gqa"]), []
    hook = model.blocks[0].attention.k.register_forward_hook(lambda module, given, got: seen.append(got.shape))
    with prepare(model, way="transposed"):
        logits(model)
    hook.remove()
    assert seen == [torch.Size([2, 9, 16])]


@pytest.mark.slow
def test_a_prepared_model_can_be_compiled():
    model = model_of(["attention=gqa"])
    given = logits(model)
    prepare(model, way="transposed")
    assert_close(logits(torch.compile(model)), given)


def test_a_model_that_is_ready_is_not_made_ready_again():
    model = model_of(["attention=gqa"])
    with prepare(model, "fp16"), pytest.raises(ConfigError, match=r"^prepare: the model is ready already"):
        prepare(model)
    prepare(model).undo()


# Fewer bits


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("way", LOWER_WAYS)
@pytest.mark.parametrize("model", one_in(3, MODELS))
def test_every_lower_precision_stays_within_its_bound(model, way, keep):
    model = model_of(MODELS[model])
    given, before = logits(model), snapshot(model)
    done = prepare(model, way=way, keep=keep)
    error = off(logits(model), given)
    assert 0 < error <= OFF[WAYS[way].precision]
    if keep:
        done.undo()
        assert_untouched(model, before)
        assert torch.equal(logits(model), given)


STAYS = re.compile(r"router|shared_gate|embedding|x_proj|dt_proj|\.attention\.[ab]$|\.[kv]_b$")
"""Of all LinearModules, by name: scores, time steps and decays, and what MLA reads as a plain weight."""


@EVERY
def test_only_products_that_bear_rounding_lose_their_plain_weight(model):
    model = model_of(MODELS[model])
    linears = {path for path, module in model.named_modules() if type(module) is LinearModule}
    prepare(model, way="bf16_plain", keep=False)
    gone = {path for path, module in model.named_modules() if getattr(getattr(module, "weight", None), "is_meta", 0)}
    lent = {"embedding.tokens", "head.out"} if model.spec.towers() and "head.out" not in linears else set()
    assert gone == {path for path in linears if not STAYS.search(path)} - lent


def test_what_was_dropped_cannot_be_undone_nor_trained():
    model = model_of(["attention=gqa"])
    done = prepare(model, "fp16", keep=False)
    with pytest.raises(ZooError, match=r"^prepare: the plain weights were dropped"):
        done.undo()
    with pytest.raises(ZooError, match=r"^prepare: the plain weights were dropped"):
        model(IDS)


def test_the_line_says_what_was_chosen_and_how_many_bytes():
    model = model_of(["ffn=moe", "head.tied=false"])
    line = str(prepare(model, "bf16", keep=False))
    packed = [module for module in model.modules() if getattr(getattr(module, "weight", None), "is_meta", False)]
    size = sum(2 * module.weight.numel() for module in packed)
    assert f"; {size / 1e6:,.1f} MB of packed weights; exact: " in line
    assert "3 (router)" in line and "9 (stacked experts)" in line


def test_weights_that_cannot_be_had_are_refused_in_one_line():
    model = model_of(["attention=gqa"])
    with pytest.raises(ConfigError, match=r"^weights: there is no 'int7' \(did you mean 'int\d'\?\)"):
        prepare(model, "int7")
    with pytest.raises(ConfigError, match=r"^weights: int8 is for a CPU, found cuda \(dtype=bf16, or fp8, would do\)$"):
        check_weights("int8", torch.device("cuda"))
    with pytest.raises(ConfigError, match=r"^way: there is no 'onedn' \(did you mean 'onednn'\?\)"):
        prepare(model, way="onedn")
    with pytest.raises(ConfigError, match=r"^weights: int8, and way transposed is of exact"):
        prepare(model, "int8", way="transposed")


def test_weights_beyond_float16_stay_exact():
    model = model_of(["attention=gqa"])
    with torch.no_grad():
        model.blocks[1].ffn.down.weight[0, 0] = 1e5
    given = logits(model)
    done = prepare(model, "fp16")
    assert done.left["has weights beyond float16's range"] == 1
    assert off(logits(model), given) < OFF["fp16"]


# From the command line


@pytest.fixture
def checkpoint(tmp_path):
    small = ["vocab_size=257", "d_model=64", "n_layers=2", "n_heads=2", "n_kv_heads=2", "head_dim=32", "d_ff=64"]
    store.save_model(
        zoo.build("llama-tiny", [*small, "max_seq_len=64"], device="cpu"), tmp_path / "some", make_byte_tokenizer()
    )
    return tmp_path / "some"


@pytest.mark.parametrize("weights", ["fp16", "bf16", "int8", "int4"])
def test_generate_writes_with_weights_in_fewer_bits_and_says_so(checkpoint, weights, capsys):
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--prompt", "def f", "--max-new-tokens", "5"]
    assert run(["generate", *options, "--weights", weights, "--temperature", "0"]) == 0
    written = capsys.readouterr()
    assert f"zoo: note: weights {weights}: " in written.err and "Traceback" not in written.err
    model, tokenizer = store.load(checkpoint), make_byte_tokenizer()
    prepare(model, weights)
    wanted = generate(model, torch.tensor([tokenizer.encode("def f")]), 5, stop_ids=[tokenizer.eos_id])
    assert written.out.rstrip("\n") == tokenizer.decode(wanted[0, 5:].tolist()).rstrip("\n")


def test_generate_refuses_two_ways_to_store_weights(checkpoint):
    with pytest.raises(
        ConfigError, match=r"^weights: int8 was requested together with fp8: weight_only \(one of the two\)$"
    ):
        load(checkpoint, weights="int8", fp8="weight_only", device="cpu")
    assert run(["generate", "--checkpoint", str(checkpoint), "--weights", "int9"]) == 2


def test_a_large_model_is_made_ready_unasked_and_a_small_one_is_not(checkpoint, monkeypatch):
    made = []
    monkeypatch.setattr(ready, "prepare", lambda model, weights, **options: made.append(options))
    load(checkpoint, device="cpu")
    assert made == []
    monkeypatch.setattr(ready, "WORTH", 1e5)
    load(checkpoint, device="cpu", rows=3)
    assert made == [{"keep": False, "rows": (1, 2), "stable": False}]
