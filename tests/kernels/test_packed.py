"""What a pass costs beside its products: the sizes of its tensors, recompilations, and waits for the device."""

import types

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from support.packaged_specs import one_in
from support.tiny_models import every_choice, model_of, spec_of
from support.tiny_models import name as named
from zoo import lazy
from zoo.cache.cache import Cache
from zoo.kernels import KERNELS, Machine, attend, prepare
from zoo.kernels.base import AttentionQuery
from zoo.kernels.eager import Eager
from zoo.kernels.found import MACHINES
from zoo.kernels.mask import Mask
from zoo.kernels.varlen import lay_varlen
from zoo.model.context import ForwardContext
from zoo.model.step import Inputs

lazy.load()
CPU = torch.device("cpu")


class Recorded(TorchDispatchMode):
    """Every operation: its name, and the tensors that it takes and gives."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        self.made.append((str(func), tensors))
        return result

    @property
    def largest(self):
        """The number of elements of the largest tensor that an operation made or met."""
        return max(each.numel() for _, tensors in self.made for each in tensors)


# ---------------------------------------------------------------- packed documents

B, T = 3, 512
PACKED = {
    "rope": [],
    "dynamic NTK": ["position=rope_dynamic", "rope_factor=2.0"],
    "ALiBi": ["position=alibi"],
    "a window": ["attention=sliding"],
    "chunks": ["attention={window:64,window_kind:chunked}"],
}


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_pass_makes_no_tensor_of_pairs_of_tokens_outside_its_kernel(name, monkeypatch):
    """The kernel here reads nothing and gives V, so that what is left is what context and layers make of B·T tokens."""

    def values(q, v):
        return v.repeat_interleave(q.shape[2] // v.shape[2], 2)

    for method in ("prepare", "refuses"):
        monkeypatch.setattr(Eager, method, lambda *_: None)
    monkeypatch.setattr(Eager, "__call__", lambda self, q, k, v, how: values(q, v))
    model = model_of([*PACKED[name], "n_layers=1", "max_seq_len=512"])
    model.kernel = "eager"
    ids = torch.randint(1, 67, (B, T))
    documents = (torch.rand(B, T) < 0.02).cumsum(1)
    with Recorded() as recorded, torch.no_grad():
        model(ids, documents=documents, logits_to_keep=0)
    assert recorded.largest < B * T * T


def test_each_token_counts_the_tokens_of_its_own_document():
    spec = spec_of([])
    documents = (torch.rand(B, 64) < 0.1).cumsum(1)
    context = ForwardContext(spec, Inputs(torch.zeros(B, 64, dtype=torch.long), documents=documents))
    pairs = documents[:, :, None] == documents[:, None, :]
    assert torch.equal(context._count_lengths(), pairs.sum(-1))
    assert torch.equal(context.every, (pairs & torch.ones(64, 64, dtype=torch.bool).tril(-1)).sum(-1))


# ---------------------------------------------------------------- cu_seqlens and recompilation


def test_cu_seqlens_are_the_ends_of_documents_in_a_shape_that_hides_their_number():
    found = set()
    for chance in (0.0, 0.05, 0.2):
        numbers = (torch.rand(3, 24) < chance).cumsum(1)
        batch = lay_varlen(Mask(24, 24, documents=(numbers, numbers)), CPU)
        lengths = [int(n) for row in numbers for n in row.unique_consecutive(return_counts=True)[1]]
        ends = torch.tensor([0, *lengths]).cumsum(0).int()
        given = batch.arguments["cu_seqlens_q"]
        assert torch.equal(given[: len(ends)], ends)
        assert bool((given[len(ends) :] == 72).all())
        found.add((given.shape, batch.arguments["max_seqlen_q"], batch.arguments["max_seqlen_k"]))
    assert found == {((33,), 24, 24)}


def test_cu_seqlens_have_room_for_a_document_at_every_token():
    numbers = torch.arange(24).expand(3, 24)
    batch = lay_varlen(Mask(24, 24, documents=(numbers, numbers)), CPU)
    assert batch.arguments["cu_seqlens_k"].tolist() == list(range(73))


@pytest.mark.parametrize("hides", ["documents", "padding", "padding of a memory"])
def test_one_compilation_serves_batches_of_other_documents_and_padding(hides, monkeypatch):
    """The kernel's function is plain torch here, which Dynamo traces as it would the real one's operator."""

    def function(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **_):
        longest = (cu_seqlens_q.diff().max() <= max_seqlen_q) & (cu_seqlens_k.diff().max() <= max_seqlen_k)
        return torch.where(longest, q, 0) * cu_seqlens_k.numel()

    torch._dynamo.reset()
    monkeypatch.setitem(MACHINES, "cpu", Machine("cuda", (9, 0), frozenset({"flash-attn"})))
    monkeypatch.setattr(KERNELS["flash2"], "loaded", types.SimpleNamespace(flash_attn_varlen_func=function))
    counter = CompileCounterWithBackend("eager")

    @torch.compile(backend=counter, fullgraph=True, dynamic=False)
    def layer(q, k, mask):
        return attend(q, k, k, mask, scale=1.0, kernel="flash2")

    asked = AttentionQuery(
        "bfloat16", 16, 16, documents=hides == "documents", padding=hides != "documents", causal=False
    )
    for chance in (0.0, 0.02, 0.06):
        numbers = (torch.rand(2, 64) < chance).cumsum(1)
        real = torch.arange(64) < torch.randint(1, 65, (2, 1))
        shape = (5, 64) if hides == "padding of a memory" else (64, 64)
        hidden = {"documents": (numbers, numbers)} if hides == "documents" else {"padding": real}
        mask = Mask(*shape, causal=False, **hidden)
        prepare(mask, asked, CPU, torch.bfloat16, kernel="flash2")
        q, k = (torch.randn(2, length, 4, 16).bfloat16() for length in shape)
        with torch._dynamo.config.patch(error_on_recompile=True):
            y = layer(q, k, mask)
        assert y.shape == q.shape and bool(y.any())
    assert counter.frame_count == 1


def test_padding_is_laid_out_without_asking_the_device_for_a_number():
    padding = torch.arange(24) >= torch.tensor([[0], [5], [24]])
    with Recorded() as recorded:
        batch = lay_varlen(Mask(24, 24, padding=padding), CPU)
    names = {name for name, _ in recorded.made}
    assert not names & {"aten._local_scalar_dense.default", "aten.nonzero.default"}
    assert batch.arguments["cu_seqlens_k"].tolist() == [0, 24, 24, 43, 48, 48, 72]


# ---------------------------------------------------------------- decoding


AXES = ("attention", "position", "router", "ffn", "pattern")  # a norm or an activation asks for nothing new
DECODERS = [each for each in every_choice() if "kind=encoder" not in each and each[0].startswith(AXES)]


@pytest.mark.parametrize("overrides", one_in(2, DECODERS), ids=named)
def test_a_decoding_step_waits_for_no_number_of_the_devices(overrides):
    """On the meta device a tensor's number cannot be had at all, and what came from the host would be a CPU tensor."""
    model = model_of([*overrides, "n_layers=2"] if "pattern" not in " ".join(overrides) else overrides).to("meta")
    ids = torch.zeros(2, 9, dtype=torch.long, device="meta")
    with torch.inference_mode():
        cache = Cache.allocate(model, 2, 12)
        model(ids[:, :8], cache=cache)
        with Recorded() as recorded:
            model(ids[:, 8:], cache=cache, logits_to_keep=1)
    strays = {name for name, tensors in recorded.made for each in tensors if each.device.type != "meta"}
    assert recorded.made and not strays


@pytest.mark.parametrize("overrides", DECODERS, ids=named)
def test_a_decoding_step_makes_no_tensor_of_numbers_of_the_hosts(overrides, monkeypatch):
    """Each would be a copy to the device, which the host waits for and a CUDA graph cannot hold."""

    def refuse(*_, **__):
        raise AssertionError("a tensor is made of numbers of the host's")

    model = model_of(overrides).eval()
    ids = torch.randint(1, 67, (2, 9))
    with torch.inference_mode():
        cache = Cache.allocate(model, 2, 12)
        model(ids[:, :8], cache=cache)
        for name in ("tensor", "as_tensor", "from_numpy"):
            monkeypatch.setattr(lazy.torch, name, refuse)
            monkeypatch.setattr(torch, name, refuse)
        assert model(ids[:, 8:], cache=cache, logits_to_keep=1).logits.isfinite().all()
