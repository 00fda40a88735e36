"""Operations on shadows against torch's: shape, dtype and layout of what comes out, and what autograd saves."""

import threading
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from support.saved_activations import saved
from support.tiny_models import model_of, spec_of
from zoo.costs.activations import PassShape, list_sections
from zoo.costs.shadow import names
from zoo.costs.shadow.names import DTYPES
from zoo.costs.shadow.replay import replace_torch
from zoo.costs.shadow.strides import view_strides
from zoo.costs.shadow.tape import UnknownOperation, taping
from zoo.costs.shadow.tensor import collect_saved, find_reached, make_shadow

# Each takes torch and its functional, or their shadows, and x [2, 6, 8], y of the same shape, a matrix w [5, 8], a
# vector v [8], a whole-numbered i [2, 6, 8] below 6 and a mask b [2, 6, 8].
OPERATIONS = {
    **{
        name: lambda t, f, a, name=name: getattr(f, name)(a.x)
        for name in ("gelu", "hardswish", "leaky_relu", "mish", "relu", "relu6", "sigmoid", "silu", "softplus")
    },
    **{name: lambda t, f, a, name=name: getattr(t, name)(a.x) for name in ("tanh", "erf", "expm1", "exp", "ceil")},
    **{
        name: lambda t, f, a, name=name: getattr(a.x, name)()
        for name in ("abs", "square", "neg", "floor", "cos", "sin", "float", "contiguous", "flatten", "rsqrt")
    },
    "clamp": lambda t, f, a: a.x.clamp(-1, 1),
    "clamped from above": lambda t, f, a: a.x.clamp(max=0.5),
    "softmax": lambda t, f, a: a.x.softmax(-1),
    "logsumexp": lambda t, f, a: a.x.logsumexp(-1, keepdim=True),
    "sum": lambda t, f, a: a.x.sum((0, 1)),
    "mean": lambda t, f, a: a.x.mean(-1, keepdim=True),
    "cumsum": lambda t, f, a: a.x.cumsum(-1),
    "topk": lambda t, f, a: a.x.topk(2, -1).values,
    "max": lambda t, f, a: a.x.max(-1, keepdim=True)[0],
    "cummax": lambda t, f, a: a.x.cummax(1).values,
    "gather": lambda t, f, a: a.x.gather(1, a.i),
    "scatter_reduce": lambda t, f, a: a.x.scatter_reduce(1, a.i[:, :1], a.x[:, :1] * 2, "amax"),
    "scatter": lambda t, f, a: a.x.scatter(1, a.i[:, :1], -1.0),
    "masked_fill": lambda t, f, a: a.x.masked_fill(a.b, 0.0),
    "where": lambda t, f, a: t.where(a.b, a.x, a.y),
    "where, a number": lambda t, f, a: t.where(a.b, a.x, 0.0),
    "index": lambda t, f, a: a.x[:, a.i[0, :, 0]],
    "two indices": lambda t, f, a: a.x[a.i[:, 0, 0] % 2, a.i[:, 1, 0]],
    "index_add": lambda t, f, a: a.x.index_add(1, a.i[0, :3, 0], a.y[:, :3]),
    "repeat_interleave": lambda t, f, a: a.x.repeat_interleave(3, 1),
    "pad": lambda t, f, a: f.pad(a.x, (0, 0, 2, 1)),
    "cat": lambda t, f, a: t.cat((a.x, a.y[:, :2]), 1),
    "stack": lambda t, f, a: t.stack((a.x, a.y), 2),
    "add": lambda t, f, a: a.x + a.y,
    "add a vector": lambda t, f, a: a.x + a.v,
    "subtract from": lambda t, f, a: 1 - a.x,
    "multiply": lambda t, f, a: a.x * a.y,
    "multiply itself": lambda t, f, a: a.x * a.x,
    "multiply by a number": lambda t, f, a: 3 * a.x,
    "multiply by a row": lambda t, f, a: a.x * a.v,
    "multiply by a mask": lambda t, f, a: a.x * a.b,
    "multiply by what needs no gradient": lambda t, f, a: a.x * a.y.detach(),
    "multiply dtypes": lambda t, f, a: a.x * a.y.float(),
    "multiply by a scalar tensor": lambda t, f, a: a.x * a.x.new_tensor(2.0),
    "divide": lambda t, f, a: a.x / a.y,
    "divide by a number": lambda t, f, a: a.x / 3,
    "divide a number": lambda t, f, a: 1.0 / a.x,
    "power": lambda t, f, a: a.x**3.0,
    "minimum": lambda t, f, a: t.minimum(a.x, a.y),
    "addcmul": lambda t, f, a: t.addcmul(a.x, a.y, a.y),
    "addcmul, scaled": lambda t, f, a: t.addcmul(a.x, a.y, a.x, value=-1),
    "hypot": lambda t, f, a: t.hypot(a.x, a.y),
    "logaddexp": lambda t, f, a: t.logaddexp(a.x, a.y),
    "vector norm": lambda t, f, a: t.linalg.vector_norm(a.x, dim=-1, keepdim=True),
    "compare": lambda t, f, a: a.x > a.y,
    "integers": lambda t, f, a: a.i // 2 + 1,
    "sum of a mask": lambda t, f, a: a.b.sum(-1),
    "negated mask": lambda t, f, a: ~a.b,
    "linear": lambda t, f, a: f.linear(a.x, a.w),
    "linear with a bias": lambda t, f, a: f.linear(a.x, a.w, a.w[:, 0]),
    "linear of what lies otherwise": lambda t, f, a: f.linear(a.x.transpose(0, 1), a.w),
    "linear of a part": lambda t, f, a: f.linear(a.x[:, :3], a.w),
    "matmul": lambda t, f, a: a.x @ a.y.mT,
    "matmul, broadcast": lambda t, f, a: a.x[:1] @ a.y.mT,
    "matmul of four dimensions": lambda t, f, a: (
        a.x.unflatten(-1, (2, 4)).transpose(1, 2) @ a.y.unflatten(-1, (2, 4)).permute(0, 2, 3, 1)
    ),
    "baddbmm": lambda t, f, a: t.baddbmm(a.x @ a.y.mT, a.x, a.y.mT),
    "einsum of scores": lambda t, f, a: t.einsum("btkgc,bskc->bkgts", a.x.view(2, 6, 2, 1, 4), a.y.view(2, 6, 2, 4)),
    "einsum of values": lambda t, f, a: t.einsum(
        "bkgts,bskc->btkgc", (a.x @ a.y.mT)[:, None, None].expand(-1, 2, 1, -1, -1), a.y.view(2, 6, 2, 4)
    ),
    "solve": lambda t, f, a: t.linalg.solve_triangular(
        (a.x @ a.y.mT).float(), a.y.float(), upper=False, unitriangular=True
    ),
    "conv": lambda t, f, a: f.conv1d(a.x, a.w.detach()[:4].repeat_interleave(3, 0)[:, :6, None].contiguous()),
    "layer_norm": lambda t, f, a: f.layer_norm(a.x, (8,), None, None, 1e-5),
    "layer_norm with a weight": lambda t, f, a: f.layer_norm(a.x, (8,), a.v.float(), None, 1e-5),
    "rms_norm": lambda t, f, a: f.rms_norm(a.x, (8,), None, 1e-5),
    "rms_norm with a weight": lambda t, f, a: f.rms_norm(a.x, (8,), a.v, 1e-5),
    "reshape that copies": lambda t, f, a: a.x.transpose(1, 2).reshape(2, 48),
    "views": lambda t, f, a: a.x[..., 1::2].unfold(1, 3, 2).squeeze(0).unsqueeze(1),
    "chunks": lambda t, f, a: a.x.chunk(3, 1)[1] * a.x.split([2, 4], 1)[0],
    "elementwise of a transpose": lambda t, f, a: a.x.transpose(1, 2).exp(),
    "unbind": lambda t, f, a: t.stack([each.exp() for each in a.x.unbind(1)], 1),
    "what leads nowhere": lambda t, f, a: (a.x.exp(), a.x * 2)[1],
}


def heads(x, count):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def scores(a):
    return (a.x @ a.y.mT)[:, None, None].expand(-1, 2, 1, -1, -1)


class Given:
    """What operations are done to."""

    def __init__(self, **tensors):
        vars(self).update(tensors)


def attention(shared=1, width=8, mask=None, learned=False, causal=True):
    """scaled_dot_product_attention of 2 heads that share `shared` keys each, on values of `width` channels."""

    def run(t, f, a):
        q, k, v = heads(a.x, 2), heads(a.x[..., : 8 // shared], 2 // shared), heads(a.y[..., :width], 2 // shared)
        added = None if mask is None else (a.x @ a.y.mT)[:1, None]
        added = added if learned or added is None else added.detach()
        return f.scaled_dot_product_attention(
            q, k, v, attn_mask=added, is_causal=causal and mask is None, scale=0.5, enable_gqa=shared > 1
        ).transpose(1, 2)

    return run


OPERATIONS |= {
    "attention": attention(),
    "attention to all": attention(causal=False),
    "attention with shared keys": attention(shared=2, width=4),
    "attention with a mask": attention(mask=True),
    "attention with a learned bias": attention(mask=True, learned=True),
    "attention with narrow values": attention(width=4),
}


def of_torch(run, dtype):
    torch.manual_seed(0)
    dims = {"x": (2, 6, 8), "y": (2, 6, 8), "w": (5, 8), "v": (8,)}
    real = {name: (torch.rand(shape) + 0.5).to(dtype).requires_grad_() for name, shape in dims.items()}
    given = Given(**real, i=torch.randint(0, 6, (2, 6, 8)), b=torch.rand(2, 6, 8) > 0.5)
    result = run(torch, F, given)
    return result, saved(lambda: run(torch, F, given), [given.w, given.v])


def of_shadow(run, dtype):
    kind = DTYPES[str(dtype).removeprefix("torch.")]
    grown = {name: make_shadow((2, 6, 8), kind, name, grad=True) for name in ("x", "y")}
    fixed = {"w": make_shadow((5, 8), kind, grad=True, held=True), "v": make_shadow((8,), kind, grad=True, held=True)}
    whole = {"i": make_shadow((2, 6, 8), DTYPES["int64"], "i"), "b": make_shadow((2, 6, 8), DTYPES["bool"], "b")}
    result = run(names.torch, names.F, Given(**grown, **fixed, **whole))
    return result, Counter(each.nbytes for each in collect_saved(find_reached([result])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_and_keeps_what_torch_s_does(name, dtype):
    found, sizes = of_torch(OPERATIONS[name], dtype)
    with taping("cpu"):
        made, told = of_shadow(OPERATIONS[name], dtype)
        assert made.shape == tuple(found.shape) and str(made.dtype) == str(found.dtype)
        assert made.requires_grad == found.requires_grad
        assert made.is_contiguous() == found.is_contiguous()
        assert told == sizes


@pytest.mark.parametrize("seed", range(40))
def test_a_view_is_one_exactly_where_torch_has_one(seed):
    torch.manual_seed(seed)
    shape = [int(size) for size in torch.randint(1, 4, (int(torch.randint(1, 5, ())),))]
    x = torch.empty(shape).permute(*torch.randperm(len(shape)).tolist())
    if seed % 3 == 0:
        x = x[..., None].expand(*x.shape, 2)
    factors = [size for size in (2, 3, 2, 3, 2) if x.numel() % size == 0][: seed % 4]
    wanted, left = [], x.numel()
    for factor in factors:
        if left % factor == 0:
            wanted.append(factor)
            left //= factor
    wanted.append(left)
    try:
        strides = x.view(wanted).stride()
    except RuntimeError:
        strides = None
    found = view_strides(tuple(x.shape), x.stride(), tuple(wanted))
    assert (found is None) == (strides is None)
    if strides is not None:
        assert [a for a, size in zip(found, wanted, strict=True) if size > 1] == [
            a for a, size in zip(strides, wanted, strict=True) if size > 1
        ]


def test_an_unknown_operation_is_named():
    with pytest.raises(UnknownOperation, match="no_such_thing"), taping("cpu"):  # the first, even if it is caught
        x = make_shadow((2, 3), DTYPES["float32"], "x", grad=True)
        for ask in (lambda: names.F.no_such_thing(x), lambda: x.no_such_thing(), lambda: names.torch.nowhere):
            with pytest.raises(UnknownOperation, match=r"no_such_thing|nowhere"):
                ask()


def test_nothing_is_kept_without_gradients():
    with taping("cpu"):
        x = make_shadow((2, 3), DTYPES["float32"], "x", grad=True)
        with names.torch.no_grad():
            assert not x.exp().requires_grad
        assert not x.detach().exp().requires_grad and not collect_saved(find_reached([x.detach().exp()]))
        assert x.exp().requires_grad


def test_memory_is_live_while_something_holds_it():
    with taping("cpu") as tape:
        x = make_shadow((4, 8), DTYPES["float32"], "x", grad=True)
        y = x + 1
        assert tape.live == 2 * 128
        z = y.exp()
        del y  # which nothing keeps
        assert tape.live == 2 * 128
        root = z.sum()
        del z  # kept by what made it
        assert tape.live == 2 * 128 + root.nbytes
        assert tape.most == 3 * 128


def test_a_pass_on_shadows_leaves_the_code_at_work_as_it_was():
    model, ids = model_of(), torch.arange(9)[None]
    before = model(ids).logits
    stop, faults = threading.Event(), []

    def run():
        while not stop.is_set():
            if not torch.equal(model(ids).logits, before):
                faults.append("another result")

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(30):
        list_sections(spec_of(), PassShape(context=9))
    stop.set()
    thread.join()
    assert not faults


def test_shading_leaves_what_has_no_tensors():
    assert replace_torch(len) is len and replace_torch(3) == 3 and replace_torch(Counter) is Counter
