"""The flash kernels over stand-ins that take and refuse what the real ones do: every case, and whole models."""

import contextlib
import re
import sys
import types
import warnings

import pytest
import standins
import torch

import zoo
import zoo.run.layer  # (which reads torch's operators, before a test lays one of its own over them)
from support.kernel_asks import ALL, HOPPER, PACKAGE
from support.packaged_specs import one_in
from support.tiny_models import every_choice, model_of
from support.tiny_models import name as named
from zoo.bench.kernels.accuracy import check_case, list_refusals
from zoo.bench.kernels.cases import find_case, list_cases, make_ask, make_inputs
from zoo.bench.kernels.processes import Settings
from zoo.cache.cache import Cache
from zoo.errors import KernelError
from zoo.generation.generate import generate
from zoo.kernels import KERNELS, Machine
from zoo.kernels.found import MACHINES
from zoo.kernels.mask import Mask
from zoo.kernels.varlen import lay_varlen

CASES = {each.name: each for each in list_cases()}


@pytest.fixture(params=PACKAGE)
def flash(request, monkeypatch):
    """A kernel's name, with its stand-in where the real one would be, on what says that it is an H100."""
    monkeypatch.setitem(MACHINES, "cpu", Machine("cuda", HOPPER, frozenset(PACKAGE[request.param])))
    standins.install(monkeypatch, "flash_torch")  # which is there with any torch
    standins.install(monkeypatch, request.param)
    return request.param


@pytest.mark.parametrize("name", CASES)
def test_every_case_equals_eager_forward_and_backward_or_is_refused(flash, name):
    for dtype in ("bfloat16", "float16"):
        standins.calls.clear()
        row = check_case(flash, CASES[name], dtype, Settings("cpu", seed=7))
        assert row.get("passed", "refused" in row), row
        assert bool(standins.calls) != ("refused" in row)


def test_what_each_refuses_is_what_it_lacks(flash):
    def refused(name):
        return list_refusals(flash, CASES[name], "bfloat16", "cpu")["forward"] is not None

    never = {"learned bias", "learned bias, causal", "prefix", "tokens that all see", "latents of 576"}
    never |= {"padding and window", "one query, padded cache"}
    sloped = {"ALiBi", "ALiBi, both sides", "ALiBi, fewer queries", "one query, window and ALiBi"}
    lacks = {
        "flash2": {"sinks", "sinks and window", "pages of 16", "heads of 192, a chunk"},
        "flash3": {"sinks", "sinks and window", *sloped},
        "flash4": sloped,
        "flash_torch": {
            *("sinks", "sinks and window", "softcap", "softcap and window", "pages of 16", "pages of 256"),
            *sloped,
            *(
                "pages of 256, a chunk",
                "pages of 256, varlen",
                "lengths by row",
                "lengths by row, a chunk",
                "lengths by row and window",
            ),
        },
    }
    assert {name for name in CASES if refused(name)} == never | lacks[flash]


def test_the_call_made_is_the_call_foretold(flash):
    """What `pick` says beforehand, for a GPU that is not at hand, is what the kernel then does."""
    from zoo.bench.kernels.cases import make_ask

    for name, each in CASES.items():
        if list_refusals(flash, each, "bfloat16", "cpu")["forward"] is not None:
            continue
        foretold = KERNELS[flash].call(make_ask(each, torch.bfloat16, grad=False))
        standins.calls.clear()
        make_inputs(each, "cpu", torch.bfloat16).forward(flash)
        assert [call.function for call in standins.calls] == [foretold.function], name
        given = standins.calls[0].arguments
        assert {key: given[key] for key in foretold.arguments} == foretold.arguments, name


def test_rows_share_one_description_of_documents():
    """A chunk of Llama 4's is the same in every row, and is described once."""
    numbers = torch.tensor([[0, 0, 1, 1, 1]])
    batch = lay_varlen(Mask(5, 5, documents=(numbers, numbers)), torch.device("cpu")).for_rows(3)
    ends = batch.arguments["cu_seqlens_q"]
    assert ends.unique_consecutive().tolist() == [0, 2, 5, 7, 10, 12, 15]
    assert ends.dtype == torch.int32
    assert batch.arguments["max_seqlen_k"] == 5


# ---------------------------------------------------------------- whole models


def wide(overrides):
    """A model whose heads are of a width that flash kernels take."""
    return model_of(overrides).to(torch.bfloat16)


def of(model, kernel, *args, **options):
    model.kernel = kernel
    with torch.no_grad():
        return model(*args, **options).logits.double()


def served(model) -> list[str]:
    """The kernel of each attention under `auto`, by the ask that it makes for whole rows."""
    from zoo.kernels import machine_of, select

    found = []
    for tower in model.spec.towers().values():
        for block in tower.blocks.values():
            blocks = block.attention.sight.blocks
            seen = {"window": block.attention.sight.window, "chosen": blocks is not None and blocks.whole_until < 23}
            ask = block.attention.ask("bfloat16", causal=tower.causal, **seen)
            if ask is not None:
                found.append(select(ask, machine_of(torch.device("cpu"))).name)
    return found


DENSE = [each for each in every_choice() if not any("moe" in override for override in each)]
"""Routers choose: a rounding more or less sends a token elsewhere, whatever attention did."""


@pytest.mark.parametrize("overrides", one_in(6, DENSE), ids=named)
def test_every_architecture_gives_under_auto_what_eager_does(flash, overrides):
    """With a package installed `auto` uses it where it can, something else where not, and the answer is the same."""
    model = wide(overrides)
    ids = torch.randint(1, 67, (2, 23))
    standins.calls.clear()
    got, eager = of(model, "auto", ids), of(model, "eager", ids)
    assert bool(standins.calls) == bool(set(served(model)) & {flash, "flash_torch"})
    exact = of(model.float(), "eager", ids)
    assert (got - exact).norm() <= 2 * (eager - exact).norm() + 1e-3 * exact.norm()


DECODERS = {
    "plain": [],
    "a window": ["attention=sliding", "window=6"],
    "softcap": ["attention.softcap=5"],
    "sinks": ["attention.sinks=true"],
    "ALiBi": ["position=alibi"],
    "MLA": ["attention=mla"],
    "chunks": ["attention={window:8,window_kind:chunked}"],
    "local and global": ["pattern=[near*2,layer]", "layers={near:{attention:{window:4}}}"],
}


@pytest.mark.parametrize("name", DECODERS)
def test_packed_documents_and_padded_rows_are_what_eager_makes_of_them(flash, name):
    model = wide(DECODERS[name])
    ids = torch.randint(1, 67, (3, 24))
    documents = (torch.rand(3, 24) < 0.15).cumsum(1)
    padding = torch.arange(24) >= torch.tensor([[0], [5], [11]])
    for options, real in (({"documents": documents}, None), ({"attention_mask": padding}, padding)):
        got, eager = (of(model, kernel, ids, **options) for kernel in ("auto", "eager"))
        exact = of(model.float(), "eager", ids, **options)
        model.bfloat16()
        if real is not None:
            got, eager, exact = (each[real] for each in (got, eager, exact))
        assert (got - exact).norm() <= 2 * (eager - exact).norm() + 1e-3 * exact.norm()


@pytest.mark.parametrize("source", [12, 24])
def test_rows_of_both_towers_are_packed_as_eager_packs_them(flash, source):
    """With as many queries as keys or more, cross-attention is a varlen batch of two sides."""
    sizes = ["d_model=32", "n_heads=4", "head_dim=8", "d_ff=48", "n_layers=2", "vocab_size=67"]
    model = zoo.build("bart-base", sizes, device="cpu", dtype="bf16").eval()
    ids, written = torch.randint(1, 67, (3, source)), torch.randint(1, 67, (3, 24))
    read = torch.tensor([[0] * 5 + [1] * 4 + [3] * (source - 9), [0] * (source - 1) + [1], [0] * source])
    wrote = torch.tensor([[0] * 9 + [1] * 8 + [3] * 7, [0] * 24, [0] * 24])
    options = {"decoder_input_ids": written, "documents": read, "decoder_documents": wrote}
    of(model, "auto", ids, **options)  # tries the function on zeros first
    standins.calls.clear()
    got, eager = (of(model, kernel, ids, **options) for kernel in ("auto", "eager"))
    assert len(standins.calls) == 3 * 2
    exact = of(model.float(), "eager", ids, **options)
    assert (got - exact).norm() <= 2 * (eager - exact).norm() + 1e-3 * exact.norm()


@pytest.mark.parametrize("name", DECODERS)
def test_decoding_through_the_cache_is_the_whole_pass(flash, name):
    model = wide(DECODERS[name])
    ids = torch.randint(1, 67, (2, 21))
    whole = of(model, "eager", ids)
    cache, pieces = Cache.allocate(model, 2, 21), []
    standins.calls.clear()
    for start, stop in ((0, 9), (9, 13), *((n, n + 1) for n in range(13, 21))):
        pieces.append(of(model, "auto", ids[:, start:stop], cache=cache))
    exact = of(model.float(), "eager", ids)
    error = (torch.cat(pieces, 1) - exact).norm()
    assert error <= 2 * (whole - exact).norm() + 2e-3 * exact.norm()
    if name == "plain":
        functions = {"flash2": "flash_attn_with_kvcache", "flash3": "flash_attn_with_kvcache"}
        assert standins.calls[-1].function == functions.get(flash, standins.calls[0].function)


def test_a_model_trains_under_each_as_under_eager(flash):
    model = wide([])
    ids = torch.randint(1, 67, (2, 24))
    found = {}
    for kernel in (flash, "eager"):
        model.kernel = kernel
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        found[kernel] = loss.item(), torch.cat([each.grad.flatten().float() for each in model.parameters()])
    assert found[flash][0] == pytest.approx(found["eager"][0], rel=2e-3)
    difference = (found[flash][1] - found["eager"][1]).norm() / found["eager"][1].norm()
    assert 0 < difference < 0.05


def test_a_run_that_names_a_flash_kernel_trains_by_it_to_the_end_and_says_by_what_it_samples(flash, tmp_path, capsys):
    """In bfloat16 it trains and evaluates; a sample is generated in float32, which it would refuse in mid-run."""
    text = tmp_path / "text"
    text.mkdir()
    (text / "numbers.txt").write_text("".join(f"{n} and {n + 1} make {2 * n + 1}\n" for n in range(300)))
    small = ["n_layers=1", "d_model=32", "n_heads=4", "n_kv_heads=2", "head_dim=8", "d_ff=48", "max_seq_len=64"]
    found = zoo.train(
        "llama-tiny",
        [
            *(f"model.{each}" for each in small),
            *("data=text", f"data.path={text}", "data.tokenizer.kind=byte", f"hydra.run.dir={tmp_path / 'run'}"),
            *("steps=2", "batch_size=2", "seq_len=24", "eval_batches=1", "sample.tokens=3", "precision=bf16"),
            f"kernel={flash}",
        ],
    )
    assert found["steps"] == 2 and found["val_loss"] > 0
    assert any(call.function for call in standins.calls)
    assert (tmp_path / "run" / "samples.txt").read_text()
    lines = " ".join("".join(capsys.readouterr()).split())
    line = f"kernel={flash} trains and evaluates; samples take kernel=auto, as flash kernels take float16 and bfloat16"
    assert lines.count(line) == 1


def test_text_is_written_by_the_kernel_named(flash):
    model = wide([])
    ids = torch.randint(1, 67, (1, 5))
    written = generate(model, ids, 8, kernel=flash)
    assert written.shape == (1, 13)
    assert standins.calls
    with pytest.raises(KernelError, match="not float32"):
        generate(model.float(), ids, 1, kernel=flash)


UNLOADABLE = [
    ImportError("libcudart.so.12: cannot open shared object file"),
    AttributeError("module 'torch' has no attribute 'libcudart.so.12'"),
    TypeError("libcudart.so.12: Expected a type"),
    NameError("name 'libcudart.so.12' is not defined"),
    KeyError("libcudart.so.12"),
]


@pytest.fixture(params=UNLOADABLE, ids=lambda error: type(error).__name__)
def broken(flash, request, monkeypatch):
    """A kernel of a package that is installed and cannot be loaded."""
    if flash == "flash_torch":
        pytest.skip("is torch's own")

    def fail():
        raise request.param

    monkeypatch.setattr(KERNELS[flash], "module", fail)
    return flash


def test_a_package_that_cannot_be_loaded_is_an_error_in_one_line(broken):
    with pytest.raises(KernelError) as error:
        make_inputs(find_case("causal"), "cpu", torch.bfloat16).forward(broken)
    assert f"kernel: {broken}: {PACKAGE[broken].copy().pop()} is installed and cannot be loaded" in str(error.value)
    assert "libcudart.so.12" in str(error.value)


def test_a_package_that_cannot_be_loaded_costs_auto_a_warning_and_not_the_run(broken):
    inputs = make_inputs(find_case("causal"), "cpu", torch.bfloat16)
    with pytest.warns(
        UserWarning, match=f"{broken}: .* cannot be loaded, found [A-Z][a-zA-Z]+Error: .*libcudart.*another kernel"
    ):
        found = inputs.forward("auto")
    assert torch.allclose(found.float(), inputs.forward("eager").float(), atol=2e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        inputs.forward("auto")


FAULTS = {
    "a wrong signature": TypeError("flash_attn_func() got an unexpected keyword argument 'softcap'\nmore"),
    "another architecture": RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    "a check of its own": AssertionError(""),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("case", ["causal", "pages of 256, varlen"])
def test_a_first_call_that_fails_costs_auto_a_warning_and_not_the_run(fault, case, monkeypatch):
    monkeypatch.setitem(MACHINES, "cpu", Machine("cuda", HOPPER, frozenset(PACKAGE["flash2"])))
    standins.install(monkeypatch, "flash_torch")
    module, error, inputs = standins.flash_attn_2, FAULTS[fault], make_inputs(find_case(case), "cpu", torch.bfloat16)
    standins.install(monkeypatch, "flash2")
    function = KERNELS["flash2"].call(make_ask(find_case(case), torch.bfloat16, grad=False)).function

    def fail(*args, **given):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, function, fail)
        told = f"kernel: flash2: the first call of {function} failed, found {type(error).__name__}: "
        with pytest.warns(UserWarning, match=re.escape(told + (str(error).partition("\n")[0] or "no message"))):
            found = inputs.forward("auto")
    assert torch.allclose(found.float(), inputs.forward("eager").float(), atol=2e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once, and not tried again
        inputs.forward("auto")
    with pytest.raises(type(error)), monkeypatch.context() as patch:  # a kernel that was named fails
        patch.setattr(module, function, fail)
        inputs.forward("flash2")


def make_opaque(name, forward_fails):
    """flash_attn_func as an operator that torch.compile does not look into, as compiled code is none of Python's. It
    fails when it runs: in the forward pass, or only in the backward pass."""

    def fail():
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    @torch.library.custom_op(f"zoo_test_flash::{name}", mutates_args=())
    def forward(q: torch.Tensor) -> torch.Tensor:
        return fail() if forward_fails else torch.zeros_like(q)

    @torch.library.custom_op(f"zoo_test_flash::{name}_backward", mutates_args=())
    def backward(dy: torch.Tensor) -> torch.Tensor:
        return fail()

    forward.register_fake(torch.empty_like)
    backward.register_fake(torch.empty_like)
    forward.register_autograd(lambda _, dy: backward(dy))
    return lambda q, k, v, **given: forward(q)


@pytest.mark.parametrize("fails", ["forward", "backward"])
def test_a_package_whose_first_call_fails_in_compiled_layers_costs_auto_a_warning(fails, monkeypatch):
    monkeypatch.setitem(MACHINES, "cpu", Machine("cuda", HOPPER, frozenset(PACKAGE["flash2"])))
    standins.install(monkeypatch, "flash2")
    monkeypatch.setattr(standins.flash_attn_2, "flash_attn_func", make_opaque(fails, fails == "forward"))
    model, ids, found = wide([]).train(), torch.randint(1, 67, (2, 23)), []
    if fails == "backward":  # as an evaluation before the first step, which finds nothing wrong
        with torch.no_grad():
            model(ids)
    for kernel in ("auto", "eager"):
        model.kernel = kernel
        for block in model.blocks:
            block.compile(dynamic=False, backend="eager")
        caught = pytest.warns(UserWarning, match="flash2: the first call of flash_attn_func failed, found RuntimeError")
        with caught if kernel == "auto" else contextlib.nullcontext():
            model(ids).logits.float().square().mean().backward()
        found.append(torch.cat([each.grad.flatten().float() for each in model.parameters()]))
        model.zero_grad()
    assert (found[0] - found[1]).norm() < 0.05 * found[1].norm()


def test_a_package_that_fails_on_real_rows_alone_costs_auto_a_warning_after_its_trial(monkeypatch):
    monkeypatch.setitem(MACHINES, "cpu", Machine("cuda", HOPPER, frozenset(PACKAGE["flash2"])))
    standins.install(monkeypatch, "flash2")
    whole, model = standins.flash_attn_2.flash_attn_func, wide([])

    def fail(q, *args, **given):
        return whole(q, *args, **given) if q.shape[1] <= 2 else 1 / 0

    monkeypatch.setattr(standins.flash_attn_2, "flash_attn_func", fail)
    with pytest.warns(UserWarning, match="flash2: the first call of flash_attn_func failed, found ZeroDivisionError"):
        of(model, "auto", torch.randint(1, 67, (2, 23)))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("illegal access")])
def test_a_later_call_that_fails_is_an_error(error, monkeypatch):
    """And so is a lack of memory at any call."""
    monkeypatch.setitem(MACHINES, "cpu", Machine("cuda", HOPPER, frozenset(PACKAGE["flash2"])))
    standins.install(monkeypatch, "flash2")
    inputs = make_inputs(find_case("causal"), "cpu", torch.bfloat16)
    if not isinstance(error, torch.OutOfMemoryError):
        inputs.forward("auto")

    def fail(*args, **given):
        raise error

    monkeypatch.setattr(standins.flash_attn_2, "flash_attn_func", fail)
    with pytest.raises(RuntimeError, match=str(error)):
        inputs.forward("auto")


def test_older_files_in_the_place_of_flash_attn_4_are_told(monkeypatch):
    def flash_attn_varlen_func(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, seqused_k=None, page_table=None):
        raise NotImplementedError

    old = types.SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", old)
    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(cute=old))
    monkeypatch.setattr(KERNELS["flash4"], "loaded", None)
    with pytest.raises(KernelError, match=r"flash4: .*its files are older, without max_seqlen_q.*after flash-attn\)"):
        KERNELS["flash4"].load()


@pytest.mark.parametrize(("name", "repository"), [("flash2_hub", "flash-attn2"), ("flash3_hub", "flash-attn3")])
def test_the_hub_is_asked_only_by_name(name, repository, monkeypatch):
    import sys
    import types

    asked = []

    def get_kernel(repo_id, *, version):
        asked.append((repo_id, version))
        return {"flash2_hub": flash_attn_2, "flash3_hub": flash_attn_3}[name]

    from standins import flash_attn_2, flash_attn_3

    monkeypatch.setitem(MACHINES, "cpu", Machine("cuda", HOPPER, ALL))
    monkeypatch.setitem(sys.modules, "kernels", types.SimpleNamespace(get_kernel=get_kernel))
    monkeypatch.setattr(KERNELS[name], "loaded", None)
    row = check_case(name, find_case("window"), "bfloat16", Settings("cpu"))
    assert row["passed"]
    assert asked == [(f"kernels-community/{repository}", 1)]
