"""Which kernel is picked, over a sample of what can be asked and where, against rules in words of their own."""

import itertools

import pytest

from support.kernel_asks import AXES, DRAWN, GRID, MACHINES, MISUSES, NOTABLE, SHAPES
from zoo.errors import KernelError
from zoo.kernels import KERNELS, AttentionQuery, Machine, pick
from zoo.kernels.blocks import SHARED

# What each lacks, as its documentation has it, by the names that `features` gives.
FLASH = {"float32", "fixed", "learned", "pairs", "odd width", "unequal"}
LACKS = {
    "flash2": FLASH | {"sinks", "over 256", "wider values", "small pages", "narrow cached values"},
    "flash3": FLASH | {"sinks", "alibi"},
    "flash4": FLASH | {"alibi"},
    "flash_torch": FLASH | {"sinks", "softcap", "alibi", "lengths", "over 256", "wider values"},
    "sdpa": {"softcap", "sinks"},
    "triton": {"gradient", "fixed", "learned", "pairs", "padding", "documents"},
    "eager": set(),
}
RUNS = {  # compute capabilities, and the package
    "flash2": (lambda c: c >= (8, 0), "flash-attn"),
    "flash3": (lambda c: c == (9, 0), "flash-attn-3"),
    "flash4": (lambda c: c[0] in (9, 10, 11), "flash-attn-4"),
    "flash_torch": (lambda c: c >= (8, 0), None),
    "triton": (lambda c: c >= (8, 0), "compiler"),
}


def features(ask: AttentionQuery) -> set[str]:
    """What an ask has, in words."""
    length = ask.padding and (ask.window or ask.bias == "alibi" or (ask.causal and ask.short_q))
    length = length or (ask.documents and ask.short_q) or (ask.lengths and ask.needs_grad)
    decoding = ask.short_q and not ask.needs_grad and not (ask.padding or ask.documents)
    has = {
        "float32": ask.dtype == "float32",
        "softcap": ask.softcap,
        "sinks": ask.sinks,
        **{"pairs": ask.pairs, "padding": ask.padding, "documents": ask.documents, "gradient": ask.needs_grad},
        "lengths": ask.lengths,
        "unequal": length,
        "odd width": ask.head_dim % 8 or ask.v_head_dim % 8,
        "over 256": ask.head_dim > 256,
        "wider values": ask.v_head_dim > ask.head_dim,
        "narrow cached values": decoding and ask.v_head_dim != ask.head_dim,
        "small pages": ask.page and ask.page % 256,
    }
    return {ask.bias, *(name for name, here in has.items() if here)}


def fits(kernel: str, ask: AttentionQuery, machine: Machine) -> bool:
    """Head widths of the kernels that take more than one."""
    k, v = ask.head_dim, ask.v_head_dim
    if kernel == "flash3":
        own = (128 < k <= 192 and 96 < v <= 128) or (k <= 64 and v <= 512)  # of V, besides one as wide as K
        if v > 256 and ask.needs_grad:
            return False
        return own or k == v <= 256 or (v < k <= 256 and "narrow cached values" not in features(ask))
    if kernel == "flash4":
        return fits_flash4(k, v, ask, machine.capability[0] == 9)
    return True


def fits_flash4(k: int, v: int, ask: AttentionQuery, hopper: bool) -> bool:
    """What its compiler makes of widths, with and without a gradient."""
    if ask.page and (k % 16 or v % 16):
        return False
    if ask.needs_grad and k != v and ((k, v) not in ((192, 128), (128, 64), (64, 128)) or ask.n_heads > 1):
        return False
    if hopper:
        return max(k, v) <= 256 and not (k < 128 and v > 192)
    if (k, v) == (256, 256):
        return not (ask.sinks or ask.softcap is not None or ask.lengths)
    return max(k, v) <= 128 or (k, v) == (192, 128)


def can(name: str, ask: AttentionQuery, machine: Machine) -> bool:
    """Whether the rules above let a kernel do it."""
    kernel, hub = name.removesuffix("_hub"), name.endswith("_hub")
    if kernel == "flex":
        return flex_can(ask, machine)
    if kernel in RUNS:
        capable, package = RUNS[kernel]
        package = "kernels" if hub else package
        if machine.device != "cuda" or not capable(machine.capability):
            return False
        if package is not None and package not in machine.packages:
            return False
    return not LACKS[kernel] & features(ask) and fits(kernel, ask, machine)


WIDEST = {64: (512, 256), 96: (1024, 512), 99: (1024, 512), 163: (2048, 1024), 227: (2048, 1024)}
"""Channels of the widest head in 16 bits, without and with gradients, by KiB of shared memory."""


def flex_can(ask: AttentionQuery, machine: Machine) -> bool:
    """flex_attention: all features; on a CPU no gradient, on CUDA heads of 16 to what shared memory holds."""
    if "compiler" not in machine.packages or machine.device not in ("cpu", "cuda"):
        return False
    if machine.device == "cpu":
        return "avx2" in machine.packages and not ask.needs_grad
    if ask.dtype == "bfloat16" and machine.capability < (8, 0):
        return False
    widest = WIDEST[SHARED[machine.capability]][ask.needs_grad] // (2 if ask.dtype == "float32" else 1)
    return all(16 <= width <= widest for width in (ask.head_dim, ask.v_head_dim))


def shows_without_a_mask(ask: AttentionQuery) -> bool:
    shape = ask.padding or ask.documents or ask.pairs or ask.lengths
    return not shape and not ask.window and ask.bias == "none" and not (ask.causal and ask.short_q)


def wanted(ask: AttentionQuery, machine: Machine) -> str:
    """What auto takes: the newest flash-attn that can; pages before copies of them; then torch's own, a mask read last;
    eager when nothing else."""
    if machine.device != "cuda":
        names = ["sdpa", "eager"]
    elif ask.page:
        names = ["flash3", "flash4", "flash2", "triton", "sdpa", "flex", "eager"]
    elif shows_without_a_mask(ask):
        names = ["flash3", "flash4", "flash2", "sdpa", "flash_torch", "flex", "triton", "eager"]
    else:
        names = ["flash3", "flash4", "flash2", "flash_torch", "sdpa", "flex", "triton", "eager"]
    return next(name for name in names if can(name, ask, machine))


def test_the_sample_has_every_value_of_every_axis_beside_every_shape():
    for number, values in enumerate(list(AXES.values())[:-1]):
        for value, shape in itertools.product(values, SHAPES):
            assert any(each[number] == value and each[-1] == shape for each in DRAWN), (value, shape)


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_auto_takes_what_the_rules_say_for_a_sample_of_what_can_be_asked(machine):
    for ask in GRID:
        choice = pick(ask, machine)
        assert choice.kernel.name == wanted(ask, machine), ask
        assert choice.call.function
        assert all(choice.refusals.values())


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_refuses_exactly_what_it_lacks_and_with_a_reason(name):
    for machine, ask in itertools.product(MACHINES.values(), GRID):
        reason = KERNELS[name].refuses(ask, machine)
        assert (reason is None) == can(name, ask, machine), (ask, machine, reason)
        assert reason is None or (len(reason) > 10 and "None" not in reason)


@pytest.mark.parametrize("name", NOTABLE)
def test_notable_asks_on_an_h100(name):
    fields, kernel = NOTABLE[name]
    ask = AttentionQuery(**{"dtype": "bfloat16", "head_dim": 128, "v_head_dim": 128, "needs_grad": True, **fields})
    assert pick(ask, MACHINES["H100"]).kernel.name == kernel


def test_the_call_says_how_each_version_spells_a_window():
    ask = AttentionQuery("bfloat16", 128, 128, needs_grad=True, window=4096, softcap=50.0)
    spelled = {name: KERNELS[name].call(ask) for name in ("flash2", "flash3", "flash4")}
    assert str(spelled["flash2"]) == "flash_attn_func(causal=True, window_size=(4095, 0), softcap=50.0)"
    assert spelled["flash3"] == spelled["flash2"] == spelled["flash4"]
    for name, open_side in (("flash2", -1), ("flash3", -1), ("flash4", None)):
        call = KERNELS[name].call(AttentionQuery("bfloat16", 128, 128))
        assert call.arguments == {"causal": True, "window_size": (open_side, open_side)}
    both = KERNELS["flash_torch"].call(AttentionQuery("bfloat16", 128, 128, causal=False, window=7))
    assert both.arguments == {"is_causal": False, "window_size_left": 7, "window_size_right": 7}


@pytest.mark.parametrize(
    ("fields", "functions"),
    [
        ({"needs_grad": True}, ("flash_attn_func", "flash_attn_func", "flash_attn_func")),
        ({"documents": True}, ("flash_attn_varlen_func",) * 3),
        ({"padding": True}, ("flash_attn_varlen_func",) * 3),
        ({"short_q": True}, ("flash_attn_with_kvcache", "flash_attn_with_kvcache", "flash_attn_func")),
        (
            {"short_q": True, "lengths": True, "page": 256},
            ("flash_attn_with_kvcache", "flash_attn_with_kvcache", "flash_attn_varlen_func"),
        ),
    ],
)
def test_each_version_is_called_by_the_function_for_it(fields, functions):
    ask = AttentionQuery("float16", 64, 64, **fields)
    assert tuple(KERNELS[name].call(ask).function for name in ("flash2", "flash3", "flash4")) == functions


@pytest.mark.parametrize("name", MISUSES)
def test_a_kernel_forced_to_do_what_it_lacks_says_so_and_what_would(name):
    fields, reason = MISUSES[name]
    ask = AttentionQuery(**{"dtype": "bfloat16", "head_dim": 64, "v_head_dim": 64, **fields})
    with pytest.raises(KernelError) as refused:
        pick(ask, MACHINES["H100"], name)
    line = str(refused.value)
    assert line.startswith(f"kernel: {name} was asked for, but {reason} (kernel=auto or kernel=")
    assert line.endswith("kernel=eager would do)")
    assert name not in line.split("(kernel=auto")[1]
