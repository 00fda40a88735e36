"""Attention: the reference against loops over single numbers, every other kernel against the reference."""

import math
import random
import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from zoo import lazy
from zoo.bench.kernels import cases
from zoo.errors import KernelError
from zoo.kernels import AttentionQuery, Machine, attend, pick, prepare
from zoo.kernels.mask import Mask
from zoo.kernels.score_bias import Given

lazy.load()  # as building a model does: what torch.compile traces must not import
CPU = torch.device("cpu")
SCALE = 0.3
HERE = ("eager", "sdpa")  # flex has a file of its own, and so have the flash kernels, over stand-ins


def tensors(batch, queries, keys, heads, kv_heads, width=8, v_width=8, dtype=torch.float32, grad=True):
    q = torch.randn(batch, queries, heads, width)
    k = torch.randn(batch, keys, kv_heads, width)
    v = torch.randn(batch, keys, kv_heads, v_width)
    return tuple(x.to(dtype).requires_grad_(grad) for x in (q, k, v))


def naive(q, k, v, seen, *, scale, softcap=None, sinks=None, bias=None):
    """Attention one query, one head, one key at a time in Python's floats: lists [B][T][H][Cv]."""
    batch, queries, heads, _ = q.shape
    group = heads // k.shape[2]
    seen = seen.expand(batch, heads, queries, k.shape[1])
    bias = None if bias is None else bias.expand(seen.shape)
    out = torch.zeros(batch, queries, heads, v.shape[3], dtype=torch.float64)
    for b, t, h in ((b, t, h) for b in range(batch) for t in range(queries) for h in range(heads)):
        weights = {}
        for s in range(k.shape[1]):
            if not seen[b, h, t, s]:
                continue
            score = scale * sum(x * y for x, y in zip(q[b, t, h].tolist(), k[b, s, h // group].tolist(), strict=True))
            score = softcap * math.tanh(score / softcap) if softcap else score
            weights[s] = math.exp(score + (0 if bias is None else bias[b, h, t, s].item()))
        total = sum(weights.values()) + (math.exp(sinks[h].item()) if sinks is not None else 0)
        for s, weight in weights.items():
            out[b, t, h] += weight / total * v[b, s, h // group].double()
    return out


def hidden_row(batch, keys):
    """Left padding that leaves the first row's first queries with nothing to see."""
    padding = torch.ones(batch, keys, dtype=torch.bool)
    padding[0, : keys // 2] = False
    return padding


def documents(batch, queries, keys):
    numbers = torch.randint(0, 2, (batch, keys)).cumsum(1)
    return numbers[:, keys - queries :], numbers


MASKS = {
    "all": lambda b, t, s: Mask(t, s, causal=False),
    "causal": lambda b, t, s: Mask(t, s),
    "window": lambda b, t, s: Mask(t, s, window=3),
    "both sides": lambda b, t, s: Mask(t, s, causal=False, window=2),
    "padded": lambda b, t, s: Mask(t, s, padding=hidden_row(b, s)),
    "documents": lambda b, t, s: Mask(t, s, documents=documents(b, t, s)),
    "padded window": lambda b, t, s: Mask(t, s, window=2, padding=hidden_row(b, s)),
}
SHAPES = {"square": (5, 5), "rectangle": (3, 7), "one query": (1, 6)}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_eager_equals_a_loop_over_single_numbers(name, shape):
    queries, keys = SHAPES[shape]
    q, k, v = tensors(2, queries, keys, 4, 2, width=3, v_width=2, grad=False)
    mask = MASKS[name](2, queries, keys)
    extras = {"softcap": 1.5, "sinks": torch.randn(4), "bias": torch.randn(4, queries, keys)}
    for chosen in ({}, *({key: value} for key, value in extras.items()), extras):
        y = attend(q, k, v, mask, scale=SCALE, kernel="eager", **chosen)
        expected = naive(q, k, v, mask.dense(CPU), scale=SCALE, **chosen)
        torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", HERE)
def test_a_query_that_sees_no_key_gives_zero_and_no_gradient(kernel, device):
    q, k, v = tensors(1, 4, 4, 4, 2)
    for bias in (None, torch.randn(1, 4, 4, 4, requires_grad=True)):
        mask = Mask(4, 4, padding=torch.tensor([[False, False, True, True]]))
        y = attend(q, k, v, mask, scale=SCALE, bias=bias, kernel=kernel)
        inputs = [q, k, v] if bias is None else [q, k, v, bias]
        grads = torch.autograd.grad(y.square().sum(), inputs)
        assert y[:, :2].abs().max() == 0
        assert y[:, 2:].abs().min() > 0
        assert all(torch.isfinite(grad).all() for grad in grads)
        assert grads[0][:, :2].abs().max() == 0
        assert grads[1][:, :2].abs().max() == 0


def test_eager_gradients_are_right_in_float64_with_every_feature():
    q, k, v = tensors(1, 3, 4, 4, 2, width=2, v_width=3, dtype=torch.float64)
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, 3, 4, dtype=torch.float64, requires_grad=True)
    padding = torch.tensor([[False, True, True, True]])

    def run(q, k, v, sinks, bias):
        mask = Mask(3, 4, window=2, padding=padding)
        return attend(q, k, v, mask, scale=SCALE, softcap=2.0, sinks=sinks, bias=bias, kernel="eager")

    assert run(q, k, v, sinks, bias).dtype == torch.float64
    assert torch.autograd.gradcheck(run, (q, k, v, sinks, bias))


TINY = cases.CaseSize(batch=2, length=6, heads=2, head_dim=2, window=3)
SMALL_CASES = [*cases._plain(TINY), *cases._scored(TINY), *cases._unequal(TINY)]


@pytest.mark.parametrize(
    "case", [each for each in SMALL_CASES if each.name != "odd lengths"], ids=lambda case: case.name
)
def test_eager_gradients_are_right_in_float64_in_every_case(case):
    """Of queries, keys, values, sinks and a learned table, against differences of the function itself."""
    inputs = cases.make_inputs(case, CPU, torch.float64)
    leaves = [each.requires_grad_() for each in inputs.tensors.values()]

    def run(*given):
        return inputs._attended(dict(zip(inputs.tensors, given, strict=True)), "eager")

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def compare(kernel, q, k, v, make_mask, bias):
    """Outputs and gradients of a kernel and of eager on the same inputs."""
    inputs = [x for x in (q, k, v, bias) if x is not None and x.requires_grad]
    results = []
    for name in (kernel, "eager"):
        y = attend(q, k, v, make_mask(), scale=SCALE, bias=bias, kernel=name)
        results.append([y, *torch.autograd.grad(y, inputs, torch.cos(y.detach()))])
    return zip(*results, strict=True)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("shape", ["square", "rectangle", "one query"])
@pytest.mark.parametrize("bias", ["none", "fixed", "learned"])
def test_sdpa_equals_eager_forward_and_backward(name, shape, bias, device):
    queries, keys = {"square": (24, 24), "rectangle": (7, 33), "one query": (1, 33)}[shape]
    for heads, kv_heads in ((4, 4), (6, 2), (4, 1)):
        q, k, v = tensors(2, queries, keys, heads, kv_heads, v_width=random.choice((8, 5)))
        added = None if bias == "none" else torch.randn(random.choice((1, heads)), queries, keys)
        added = added.requires_grad_() if bias == "learned" else added
        seed = random.randrange(2**31)

        def mask(seed=seed):
            torch.manual_seed(seed)
            return MASKS[name](2, queries, keys)

        for got, expected in compare("sdpa", q, k, v, mask, added):
            torch.testing.assert_close(got, expected, atol=3e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["causal", "window", "padded"])
@pytest.mark.parametrize("shape", [(32, 32), (1, 48)], ids=["square", "one query"])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
def test_sdpa_in_bfloat16_errs_no_more_than_twice_what_eager_does(name, shape, biased, device):
    queries, keys = shape
    rounded = tensors(2, queries, keys, 6, 2, dtype=torch.bfloat16)
    exact = [x.detach().float().requires_grad_() for x in rounded]
    bias = -torch.rand(6, 1, 1) * torch.arange(keys) if biased else None
    wanted = [attend(*exact, MASKS[name](2, *shape), scale=SCALE, bias=bias, kernel="eager")]
    wanted += torch.autograd.grad(wanted[0].sum(), exact)
    errors = {}
    for kernel in ("eager", "sdpa"):
        y = attend(*rounded, MASKS[name](2, *shape), scale=SCALE, bias=bias, kernel=kernel)
        assert y.dtype == torch.bfloat16
        got = [y, *torch.autograd.grad(y.sum(), rounded)]
        errors[kernel] = [(x - w).norm().item() / w.norm().item() for x, w in zip(got, wanted, strict=True)]
    for sdpa, eager in zip(errors["sdpa"], errors["eager"], strict=True):
        assert sdpa <= 2 * eager + 1e-3


def test_eager_rounds_nothing_between_its_two_products():
    """Scores exact in bfloat16, scaled by a number that is not; V the identity, so that the answer is the softmax."""
    q, k = torch.randint(-3, 4, (1, 6, 1, 4)).bfloat16(), torch.randint(-3, 4, (1, 6, 1, 4)).bfloat16()
    y = attend(q, k, torch.eye(6).bfloat16()[None, :, None], Mask(6, 6, causal=False), scale=1 / 3, kernel="eager")
    scores = q[0, :, 0].float() @ k[0, :, 0].float().T
    assert torch.equal(y[0, :, 0], (scores / 3).softmax(-1).bfloat16())


def test_window_decides_by_the_keys_it_shows(device):
    """The oldest key a window shows changes the answer, the next older one does not."""
    q, k, v = tensors(1, 1, 8, 2, 2, grad=False)
    y = attend(q, k, v, Mask(1, 8, window=3), scale=SCALE)
    for column, matters in ((4, False), (5, True), (7, True)):
        changed = v.clone()
        changed[:, column] += 1
        assert torch.equal(y, attend(q, k, changed, Mask(1, 8, window=3), scale=SCALE)) != matters


@pytest.mark.parametrize("kernel", HERE)
def test_decoding_a_token_equals_the_last_row_of_the_whole(kernel, device):
    q, k, v = tensors(2, 9, 9, 6, 2, grad=False)
    whole = attend(q, k, v, Mask(9, 9), scale=SCALE, kernel=kernel)
    last = attend(q[:, 8:], k, v, Mask(1, 9), scale=SCALE, kernel=kernel)
    torch.testing.assert_close(last, whole[:, 8:])


def test_keys_kept_in_another_dtype_are_read_in_that_of_the_queries(device):
    q, k, v = tensors(1, 1, 5, 2, 2, grad=False)
    y = attend(q, k.bfloat16(), v.bfloat16(), Mask(1, 5), scale=SCALE)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, attend(q, k.bfloat16().float(), v.bfloat16().float(), Mask(1, 5), scale=SCALE))


class Largest(TorchDispatchMode):
    """The largest tensor that any operation made anew."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in known:
                self.size = max(self.size, x.numel())
        return out


@pytest.mark.parametrize("queries", [1, 40])
def test_sdpa_copies_neither_keys_nor_values_to_share_them(queries):
    q, k, v = tensors(1, queries, 400, 4, 2, grad=False)
    with Largest() as largest, torch.no_grad():
        attend(q, k, v, Mask(queries, 400, causal=False), scale=SCALE, kernel="sdpa")
    assert 0 < largest.size < k.numel()


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("v_width", [8, 5])
def test_eager_counts_exactly_the_two_products(heads, kv_heads, v_width):
    q, k, v = tensors(2, 3, 7, heads, kv_heads, v_width=v_width, grad=False)
    with FlopCounterMode(display=False) as counter:
        attend(q, k, v, Mask(3, 7), scale=SCALE, kernel="eager")
    assert counter.get_total_flops() == 2 * (2 * 3 * 7 * heads * (8 + v_width))


@pytest.mark.parametrize(
    ("kernel", "name"), [("sdpa", "causal"), ("sdpa", "window"), ("sdpa", "padded"), ("eager", "documents")]
)
def test_attention_compiles_into_one_graph_with_its_backward(kernel, name):
    torch._dynamo.reset()
    made = MASKS[name](2, 6, 6)
    kept = {"window": made.window, "padding": made.padding, "documents": made.documents}

    def layers(q, k, v, bias):
        mask = Mask(6, 6, **kept)
        y = attend(q, k, v, mask, scale=SCALE, bias=bias, kernel=kernel)
        return attend(y, k, v, mask, scale=SCALE, bias=bias, kernel=kernel)

    q, k, v = tensors(2, 6, 6, 4, 2)
    compiled = torch.compile(layers, fullgraph=True, backend="aot_eager")
    for bias in (None, torch.randn(4, 6, 6, requires_grad=True)):
        inputs = [x for x in (q, k, v, bias) if x is not None]
        expected, got = layers(q, k, v, bias), compiled(q, k, v, bias)
        torch.testing.assert_close(got, expected)
        weight = torch.randn_like(got)
        grads = (torch.autograd.grad(y, inputs, weight) for y in (got, expected))
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other)


def ask_of(q, bias=None, **features):
    kind = "none" if bias is None else bias.kind
    return AttentionQuery(str(q.dtype).removeprefix("torch."), q.shape[3], q.shape[3], bias=kind, **features)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("biased", [False, True])
def test_equal_layers_compile_once_when_the_mask_is_prepared(softcap, biased):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    q, k, v = tensors(1, 6, 6, 4, 2)
    bias = Given(torch.randn(4, 6, 6)) if biased else None

    @torch.compile(fullgraph=True, backend=counter)
    def layer(q, k, v, mask, bias):
        return attend(q, k, v, mask, scale=SCALE, softcap=softcap, bias=bias)

    for _ in range(2):  # steps
        mask = Mask(6, 6, window=3)
        prepare(mask, ask_of(q, bias, softcap=softcap, **mask.features), CPU, q.dtype, bias=bias)
        for _ in range(3):
            layer(q, k, v, mask, bias)
    assert counter.frame_count == 1


def test_auto_takes_the_first_kernel_that_does_not_refuse():
    plain, cpu = AttentionQuery("float32", 64, 64), Machine("cpu")
    assert pick(plain, cpu).kernel.name == "sdpa"
    for feature in ({"softcap": 30.0}, {"sinks": True}):
        kernel, _, refusals = pick(AttentionQuery("bfloat16", 64, 64, **feature), cpu)
        assert kernel.name == "eager"
        assert next(iter(feature)).rstrip("s") in refusals["sdpa"]
        assert refusals["flash2"] == "it runs on CUDA devices, this is cpu"


def test_a_kernel_forced_to_do_what_it_cannot_says_why_and_what_would():
    q, k, v = tensors(1, 2, 2, 2, 2)
    message = r"^kernel: sdpa was asked for, but .* has no softcap \(kernel=auto or .*kernel=eager would do\)$"
    with pytest.raises(KernelError, match=message):
        attend(q, k, v, Mask(2, 2), scale=SCALE, softcap=2.0, kernel="sdpa")
    with pytest.raises(KernelError, match="has no attention sinks"):
        attend(q, k, v, Mask(2, 2), scale=SCALE, sinks=torch.zeros(2), kernel="sdpa")
    with pytest.raises(KernelError, match="there is no 'egaer' \\(did you mean 'eager'\\?\\)"):
        attend(q, k, v, Mask(2, 2), scale=SCALE, kernel="egaer")


@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("fields", [{}, {"weight": False}, {"bias": True}, {"weight": False, "bias": True}], ids=str)
def test_a_norm_by_torchs_own_kernel_is_the_norm_composed(kind, fields, monkeypatch):
    """CUDA's way, taken here in float32, where both must agree to rounding."""
    from zoo.model import norm
    from zoo.run.layer import Layer

    spec = {"rmsnorm": norm.RMSNorm, "layernorm": norm.LayerNorm}[kind](**{"bias": False, **fields})
    layer, x = Layer(spec, 24), torch.randn(3, 5, 24, requires_grad=True)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    results = []
    for fused in (False, True):
        monkeypatch.setattr(norm, "_fuses", lambda device, fused=fused: fused)
        y = layer(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    for composed, native in zip(*results, strict=True):
        torch.testing.assert_close(native, composed, atol=2e-5, rtol=1e-5)


def test_dynamic_tanh_is_its_formula_and_all_of_it_learns():
    from zoo.model.norm import DyT
    from zoo.run.layer import Layer

    norm, x = Layer(DyT(alpha=0.7), 24), torch.randn(3, 24)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    weights = {name: each.detach().double() for name, each in norm.named_parameters()}
    y = norm(x)
    expected = weights["weight"] * torch.tanh(weights["alpha"] * x.double()) + weights["bias"]
    torch.testing.assert_close(y.double(), expected, atol=1e-6, rtol=1e-6)
    y.square().sum().backward()
    assert all(each.grad is not None and each.grad.abs().max() > 0 for each in norm.parameters())


def test_importing_what_builds_models_touches_no_device():
    """A process that did could not fork any more and use CUDA in its children, as `make gpu-check` does."""
    code = (
        "import torch; torch.cuda.is_available = torch.cuda._lazy_init = lambda *_: 1 / 0; "
        "import zoo.run.layer, zoo.bench.kernels.checking"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
