"""What is asked of kernels and where: a sample of all, and what readers would want to know."""

import itertools
import random

from zoo.kernels import AttentionQuery, Machine
from zoo.kernels.found import EVERYTHING

ALL = EVERYTHING


NVIDIA = {"T4": (7, 5), "A100": (8, 0), "L4": (8, 9), "H100": (9, 0), "B200": (10, 0), "RTX 5090": (12, 0)}


MACHINES = {
    "a CPU": Machine("cpu", None, ALL),
    "a CPU without a compiler": Machine("cpu", None, frozenset({"avx2"})),
    "a CPU without AVX2": Machine("cpu", None, frozenset({"compiler"})),
    "an AMD card": Machine("rocm", None, ALL),
    **{name: Machine("cuda", capability, ALL) for name, capability in NVIDIA.items()},
    "an H100 with torch alone": Machine("cuda", (9, 0), frozenset({"compiler"})),
    "an H100 with flash-attn 2": Machine("cuda", (9, 0), frozenset({"compiler", "flash-attn"})),
}


WIDTHS = ((64, 64), (128, 128), (256, 256), (320, 320), (20, 20), (8, 8), (192, 128), (64, 128), (64, 512), (576, 512))


SHAPES = (
    {},
    {"short_q": True},
    {"padding": True},
    {"padding": True, "short_q": True},
    {"documents": True},
    {"documents": True, "short_q": True},
    {"pairs": True},
    {"lengths": True, "short_q": True},
    {"lengths": True, "short_q": True, "page": 16},
    {"lengths": True, "short_q": True, "page": 256},
)


AXES = {
    "dtype": ("float32", "float16", "bfloat16"),
    "widths": WIDTHS,
    "needs_grad": (False, True),
    "causal": (True, False),
    "window": (None, 64),
    "softcap": (None, 30.0),
    "sinks": (False, True),
    "bias": ("none", "alibi", "fixed", "learned"),
    "shape": SHAPES,
}


DRAWN = random.Random(0).sample(list(itertools.product(*AXES.values())), 2000)
"""Asks, as one value of each axis: a sample of the 38,400 that there are, the same in every run."""


def ask_of(drawn: tuple) -> AttentionQuery:
    fields = dict(zip(AXES, drawn, strict=True))
    head_dim, v_head_dim = fields.pop("widths")
    return AttentionQuery(head_dim=head_dim, v_head_dim=v_head_dim, **fields.pop("shape"), **fields)


GRID = [ask_of(each) for each in DRAWN]


NOTABLE = {  # what a reader would want to know, on an H100 with every package
    "plain causal": ({"causal": True}, "flash3"),
    "with a softcap and a window": ({"softcap": 50.0, "window": 4096}, "flash3"),
    "ALiBi": ({"bias": "alibi"}, "flash2"),
    "learned sinks": ({"sinks": True, "window": 128}, "flash4"),
    "T5's learned bias": ({"bias": "learned"}, "sdpa"),
    "packed documents": ({"documents": True}, "flash3"),
    "pages of 16 tokens": ({"lengths": True, "short_q": True, "page": 16, "needs_grad": False}, "flash3"),
    "sinks of each query, in pages": (
        {"sinks": True, "token_sinks": True, "lengths": True, "short_q": True, "page": 16, "needs_grad": False},
        "triton",
    ),
    "a prefix": ({"pairs": True}, "sdpa"),
    "float32": ({"dtype": "float32"}, "sdpa"),
    "MLA expanded": ({"head_dim": 192, "v_head_dim": 128}, "flash3"),
    "MLA absorbed": ({"head_dim": 576, "v_head_dim": 512, "short_q": True, "needs_grad": False}, "sdpa"),
    "MLA absorbed, in pages": (
        {"head_dim": 576, "v_head_dim": 512, "short_q": True, "lengths": True, "page": 16, "needs_grad": False},
        "triton",
    ),
    "a learned bias under a softcap": ({"bias": "learned", "softcap": 30.0}, "flex"),
}


MISUSES = {  # a kernel forced to do what it lacks, on the machine that it is for
    "flash2": ({"sinks": True}, "flash-attn 2 has no attention sinks"),
    "flash3": ({"bias": "alibi"}, "flash-attn 3 has no ALiBi"),
    "flash4": ({"bias": "learned"}, "flash kernels have no learned bias"),
    "flash_torch": ({"softcap": 30.0}, "torch's flash kernels have no softcap"),
    "flash2_hub": ({"dtype": "float32"}, "flash kernels take float16 and bfloat16, not float32"),
    "flash3_hub": (
        {"pairs": True},
        "flash kernels cannot show single pairs: a prefix, global tokens, an encoder's beside a window",
    ),
    "sdpa": ({"sinks": True}, "scaled_dot_product_attention has no attention sinks"),
    "flex": (
        {"head_dim": 8, "v_head_dim": 8},
        "flex_attention on CUDA is for heads of 16 channels or more, not 8",
    ),
    "triton": ({"needs_grad": True}, "the split-KV kernel has no gradient"),
}


PACKAGE = {"flash2": {"flash-attn"}, "flash3": {"flash-attn-3"}, "flash4": {"flash-attn-4"}, "flash_torch": set()}


HOPPER = (9, 0)
