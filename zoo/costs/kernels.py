# T new tokens, S keys, W window
"""Predict the attention kernel that `auto` chooses for each kind of layer, in training, prefill and decoding, on any
known GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from zoo.costs.hardware import hardware
from zoo.costs.rows import Priced, list_blocks
from zoo.costs.setup import COMPUTED, Setup
from zoo.kernels import KERNELS, pick
from zoo.kernels.base import AttentionQuery, Machine
from zoo.kernels.found import EVERYTHING
from zoo.kernels.mask import Mask
from zoo.kernels.view.page_tables import choose_page
from zoo.model.attention.base import Attention
from zoo.model.block.base import Block
from zoo.model.tower import Tower
from zoo.spec.parts import count_kinds

GENERATING = ("train", "prefill", "decode")
READING = ("train", "encode")
"""The uses for which a kernel is chosen: GENERATING in a causal tower, READING in a bidirectional one."""

INSTALLED = {"torch": frozenset({"compiler"}), "everything": EVERYTHING}
"""Packages installed besides torch: torch's compiler only, or all packages that kernels use."""


def kernels(spec: Priced, setup: Setup | None = None) -> dict[str, Any]:
    """Choose the kernel of every kind of layer, as plain data: the GPU, and in `layers` a line for each kind and use.

    A line has the layer's place, its `use`, the AttentionQuery (`ask`), and two choices of a kernel with its call:
    "torch" with torch alone installed, "everything" with all packages. `refusals` names the kernels earlier in the
    order that refuse even with all packages, each with its reason. A mixer without softmax attention has one line, with
    `use` None. Rows are taken to be of one length and unpadded; `without` names inputs that could change the choice.
    Raises ConfigError for an unknown GPU, and for one that does not multiply the Setup's dtype.
    """
    setup = Setup() if setup is None else setup
    if setup.gpu is not None:
        hardware(setup.gpu).flops(setup.dtype)  # raises where the GPU has no such products
    machine, title = machine_for(setup.gpu)
    return {
        "gpu": setup.gpu,
        "title": title,
        "capability": None if machine.capability is None else list(machine.capability),
        "dtype": setup.dtype,
        "context": setup.tokens(spec),
        "without": list(_without(spec)),
        "layers": [line for name, tower in spec.towers().items() for line in _lines(name, tower, spec, setup, machine)],
    }


def machine_for(gpu: str | None) -> tuple[Machine, str]:
    """Describe an accelerator of conf/hardware (None: a CPU) as a Machine without packages. Also returns the
    accelerator's title."""
    if gpu is None:
        return Machine("cpu"), "a CPU"
    device = hardware(gpu)
    name = device.title if device.capability is None else "cuda"
    return Machine(name, device.capability), device.title


def asks(
    tower: Tower, kind: str, use: str, setup: Setup, memory: int | None = None
) -> dict[str, AttentionQuery | None]:
    """Describe the attentions of a kind of layer in one use, each by an AttentionQuery: self-attention under
    "attention", and a separate cross-attention to `memory` tokens (None: as many as the context) under "cross". The
    value is None for a mixer that uses no kernel."""
    block, tokens, train = tower.blocks[kind], setup.tokens(tower), use == "train"
    new = 1 if use == "decode" else tokens
    read = tokens if memory is None else memory
    packed = train and setup.document is not None
    if use == "decode":
        masks = {"attention": _join(block, _mask_next(block.attention, tokens), read)}
    else:
        masks = {"attention": mask_whole(tower, block, tokens, packed, read)}
    if block.crosses:
        masks["cross"] = Mask(new, read, causal=False)
    dtype = COMPUTED[setup.computed if train else setup.dtype]
    found = {}
    for part, mask in masks.items():
        attention, features = getattr(block, part), {"needs_grad": train, **mask.features}
        decodes = use == "decode"
        found[part] = attention.decode_ask(dtype, 1, **features) if decodes else attention.ask(dtype, **features)
    return found


def _without(spec: Priced) -> Iterator[str]:
    """Name the inputs that would make `auto` choose other kernels."""
    yield "padding"
    if any("global" in block.attention.extras for block in list_blocks(spec)):
        yield "global tokens"
    if any(getattr(tower, "prefix_lm", False) for tower in spec.towers().values()):
        yield "a prefix"


def mask_whole(tower: Tower, block: Block, tokens: int, packed: bool, memory: int) -> Mask:
    """Make the mask of whole rows without padding, as `zoo.model.context` does. A `packed` row has several documents.
    If self-attention also reads the encoder, its `memory` tokens are appended to the keys."""
    sight = block.attention.sight
    # Only the presence of a mask's field matters here, so () stands in for its tensors.
    documents: Any = () if packed or sight.chunk is not None else None
    only: Any = () if sight.blocks is not None and tokens > sight.blocks.whole_until else None
    reach = {"causal": tower.causal, "window": sight.window, "ahead": sight.ahead}
    return _join(block, Mask(tokens, tokens, **reach, documents=documents, only=only), memory)


def _mask_next(attention: Attention, tokens: int) -> Mask:
    """Make the mask of one token after `tokens` cached ones. The cache hands over only the keys that the token sees."""
    window, chunk = attention.sight.window, attention.sight.chunk
    first = max(0, tokens - window + 1) if window else 0
    first = tokens // chunk * chunk if chunk else first
    return Mask(1, tokens + 1 - first, causal=True)


def _join(block: Block, mask: Mask, memory: int) -> Mask:
    """Join an encoder's `memory` tokens to the keys of a mask, if self-attention reads them too."""
    if block.cross is None or block.crosses:
        return mask
    pairs = {"window": mask.window, "also": ()} if mask.features["window"] else {}
    return Mask(mask.n_queries, memory + mask.n_keys, documents=mask.documents, **pairs)  # type: ignore[arg-type]


def _lines(name: str, tower: Tower, spec: Priced, setup: Setup, machine: Machine) -> Iterator[dict[str, Any]]:
    memory = setup.tokens(spec) if tower.reads_memory else None
    for kind in tower.blocks:
        place = {"tower": name, "kind": kind, "layers": count_kinds(tower.pattern)[kind]}
        for use in GENERATING if tower.causal else READING:
            for part, ask in asks(tower, kind, use, setup, memory).items():
                if ask is not None:
                    if use == "decode" and machine.device == "cuda" and not ask.pairs:
                        ask = _read_by_page(ask, getattr(tower.blocks[kind], part), part)
                    yield {**place, "part": part, "use": use, "ask": asdict(ask), **_chosen(ask, machine)}
                elif use == "train":
                    yield {**place, "part": part, "use": None, "mixer": getattr(tower.blocks[kind], part).kind}


def _read_by_page(ask: AttentionQuery, attention: Attention, part: str) -> AttentionQuery:
    """Describe a step of decoding as the engine computes it on a GPU: rows of unequal length, read by page table."""
    own = part == "attention"
    return replace(ask, lengths=True, short_q=True, causal=own, window=attention.sight.window if own else None)


def _chosen(ask: AttentionQuery, machine: Machine) -> dict[str, Any]:
    """Choose the kernel as `auto` does under each of INSTALLED, and list why earlier kernels refuse. With `lengths` the
    keys are in pages, of the size that the engine chooses."""
    choices = {}
    for name, packages in INSTALLED.items():
        there = replace(machine, packages=packages)
        choices[name] = pick(replace(ask, page=choose_page([ask], there)) if ask.lengths else ask, there)
    found: dict[str, Any] = {
        name: {"kernel": choice.kernel.name, "call": choice.call.function, "arguments": dict(choice.call.arguments)}
        for name, choice in choices.items()
    }
    tried = dict.fromkeys(name for choice in choices.values() for name in choice.refusals)
    whole = replace(machine, packages=EVERYTHING)
    reasons = {name: KERNELS[name].refuses(ask, whole) for name in tried}
    return {**found, "refusals": {name: reason for name, reason in reasons.items() if reason is not None}}
