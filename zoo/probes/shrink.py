"""Shrink any decoder to the size of a probe: the same kinds of layer and choices, with small dimensions.

The Spec is converted to plain data, its dimensions are replaced by key, and the data is parsed again. Thus every rule
of the grammar also holds for the small model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any, NamedTuple

from zoo.costs.params import count_parameters
from zoo.errors import ConfigError
from zoo.grammar import from_dict, to_dict
from zoo.model.decoder import Decoder
from zoo.model.init import Normal
from zoo.model.layer_loop import Loop
from zoo.spec import Spec

N_LAYERS, HEAD_DIM = 2, 32

MOST = 4_000_000
"""Maximum number of parameters of a model at the probe's size, without token tables."""

FEED_FORWARD = frozenset(["block", "ffn", "d_ff", "activation", "router", "n_experts", "top_k", "shared_expert"])
"""Keys that belong to a feed-forward. If the user sets one of them, feed-forwards are kept."""

STRIPPED = ("pre", "post", "post_inside", "sandwich", "parallel")
"""Kinds of block with a mixer and a feed-forward, which are reduced to a block with only the mixer."""

AT_MOST = {
    **dict.fromkeys(("d_state", "d_router", "landmarks", "block_size", "global_block_size"), 16),
    **dict.fromkeys(("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "rank", "adapter_rank"), 16),
    **dict.fromkeys(("decay_rank", "gate_rank", "rate_rank", "value_rank", "laurel_rank"), 16),
    **dict.fromkeys(("q_lora_rank", "width", "out_width", "latent"), 32),
    **{"dt_rank": 4, "n_experts": 4, "zero_experts": 2, "null_experts": 1, "heads": 2},
    **{"table_size": 1000, "eos_id": 0},
}
"""Upper limits of dimensions in the small model, by key."""

LENDERS = ("kv_from", "values_from")
"""Fields of an attention that name another kind of layer, whose keys or values the attention reads."""

FASTEST_CHUNK = 32
"""Tokens of a recurrence's chunk, which affects only speed. At 32 channels per head, 16 to 32 tokens were fastest."""


class SizeDemand(NamedTuple):
    """A probe's requirements: vocabulary, longest sequence, layers with only a mixer (`mixer_alone`), and width."""

    vocab_size: int
    max_seq_len: int
    mixer_alone: bool
    d_model: int = 64


def shrink(spec: Decoder, size: SizeDemand, kept: Collection[str] = (), label: str = "model") -> Spec:
    """Shrink a decoder to a probe's size. Keys in `kept`, such as `n_layers` or `d_model`, are not changed.

    The small model has the probe's width, 32 channels a head, and two layers, or one of each kind if there are several
    (for a loop, see `shorten`). With `mixer_alone` a layer is x + mixer(norm(x)). Windows are kept, because they are
    not dimensions of weights. Matrices are drawn with a standard deviation of 1/√d_model. The usual 0.02 suits a
    d_model of 2,500; at 64, attention would not learn mqar within a short run. Raises ConfigError for a model that is
    no decoder or cannot be shrunk.
    """
    refuse_unfit(spec, kept, label)
    node = to_dict(spec)
    rule = make_rule(node, size, kept)
    alone = size.mixer_alone and not FEED_FORWARD.intersection(kept)
    blocks, pattern, loop = choose_layers(node, rule, kept, alone, spec.loop)
    if not pattern:
        raise ConfigError(f"{label}: has no layer that mixes tokens, so that nothing is left to probe (attention=gqa)")
    own = {key: value for key, value in node.items() if key not in ("blocks", "pattern")}
    made = {**resize(own, rule), "blocks": blocks, "pattern": pattern, "loop": to_dict(loop), "pooler": None}
    if alone and "final_norm" not in kept:
        made["final_norm"] = None
    if "init" not in kept:
        made["init"] = to_dict(Normal(std=made["d_model"] ** -0.5))
    if not spec.head.predicts_tokens:
        made["head"] = {"kind": "lm", "vocab_size": size.vocab_size}
    if per_layer := made["embedding"].get("per_layer"):
        read_by = any(block.get("layer_input") for block in blocks.values())
        made["embedding"]["per_layer"] = {**per_layer, "n_layers": len(pattern)} if read_by else None
    return read(made, label)


def choose_layers(
    node: Mapping[str, Any], rule: SizeRule, kept: Collection[str], alone: bool, loop: Loop | None
) -> tuple[dict[str, Any], list[str], Any]:
    """Return the small model's kinds of layer, its pattern (empty if no layer mixes tokens), and its loop, if any."""
    blocks = {name: resize(block, rule) for name, block in node["blocks"].items()}
    if alone:
        blocks = {name: strip(block) for name, block in blocks.items() if block["kind"] != "feed_forward"}
    loop = loop and count_kept(loop, [name in blocks for name in node["pattern"]])
    blocks, pattern = merge_equal(blocks, [name for name in node["pattern"] if name in blocks])
    kinds = list(dict.fromkeys(pattern))
    if not {"n_layers", "pattern"}.intersection(kept):
        if loop is not None:
            pattern, loop = shorten(pattern, loop)
        else:
            pattern = kinds * N_LAYERS if len(kinds) == 1 else kinds
    return {name: blocks[name] for name in kinds}, pattern, loop


def count_kept(loop: Loop, kept: Sequence[bool]) -> Any:
    """Resize a loop to the layers of its pattern that are `kept`. None if a section keeps no layer."""
    first = dict(zip(reversed(loop.visits), reversed(kept[loop.start : loop.stop]), strict=True))
    sections = [sum(first[number] for number in section) for section in number_sections(loop)]
    return loop.resize(sum(kept[: loop.start]), sections) if all(sections) else None


def number_sections(loop: Loop) -> list[range]:
    """Return the layer numbers of each section of a loop."""
    ends = [*accumulate(loop.sections, initial=loop.start)]
    return [range(*each) for each in pairwise(ends)]


def shorten(pattern: Sequence[str], loop: Loop) -> tuple[list[str], Any]:
    """Shorten a pattern with a loop to one layer of each kind before the loop, in each section, and after the loop."""
    before, inside, behind = pattern[: loop.start], pattern[loop.start : loop.stop], pattern[loop.stop :]
    last = dict(zip(loop.visits, inside, strict=True))
    first = dict(zip(reversed(loop.visits), reversed(inside), strict=True))
    pairs = [list(dict.fromkeys((first[each], last[each]) for each in section)) for section in number_sections(loop)]
    kinds = list(dict.fromkeys(before))
    small = loop.resize(len(kinds), [len(each) for each in pairs])
    names = dict(enumerate(chain(*pairs), small.start))
    seen: set[int] = set()
    for number in small.visits:
        kinds.append(names[number][number in seen])
        seen.add(number)
    return [*kinds, *dict.fromkeys(behind)], small


def refuse_unfit(spec: Decoder, kept: Collection[str], label: str) -> None:
    """Raise ConfigError for a model that is no decoder, or that reads an encoder's output, and for overrides of keys
    that the probe sets itself."""
    if spec.kind != "decoder":
        what = spec.kind.replace("_", "-")
        raise ConfigError(f"{label}: is an {what}, and the answers of a probe follow from earlier tokens (a decoder)")
    if spec.reads_memory:
        raise ConfigError(f"{label}: its layers read an encoder's output, and a probe has none (no block.cross)")
    for key in ("vocab_size", "max_seq_len"):
        if key in kept:
            raise ConfigError(f"{label}: {key} is what the probe's rows need, and an override sets it (leave it out)")


def read(node: Mapping[str, Any], label: str) -> Any:
    """Parse the Spec of a shrunk model. Raises ConfigError if its dimensions do not fit, or if it is too large."""
    try:
        spec = from_dict(node)
        counted = count_parameters(spec)
    except (ConfigError, ValueError) as error:
        reason = error.faults[0] if isinstance(error, ConfigError) else str(error)
        raise ConfigError(
            f"{label}: has no form at a probe's size, {reason} (set these dimensions yourself)"
        ) from error
    if (found := counted["total"] - counted["embedding"]) > MOST:
        what = f"has {found:,} parameters at a probe's size, at most {MOST:,} would do"
        raise ConfigError(f"{label}: {what} (set its dimensions yourself)")
    return spec


SizeRule = Callable[[str, int, Mapping[str, Any]], int]
"""Returns a dimension of the small model, from its key, the large model's value, and the node that has it."""


def make_rule(node: Mapping[str, Any], size: SizeDemand, kept: Collection[str]) -> SizeRule:
    """Make the rule for the dimensions of the small model of the plain data `node`. Keys in `kept` do not change."""
    width = node["d_model"] if "d_model" in kept else size.d_model
    head = node.get("head_dim") if "head_dim" in kept else HEAD_DIM
    heads = max(1, width // (head or HEAD_DIM))
    fixed = {
        **{"d_model": width, "d_inner": width, "d_ff": 2 * width, "head_dim": HEAD_DIM},
        **{"head_k_dim": HEAD_DIM, "head_v_dim": HEAD_DIM, "v_head_dim": HEAD_DIM, "n_k_heads": heads},
        **{"vocab_size": size.vocab_size, "max_seq_len": size.max_seq_len},
    }
    rules: dict[str, Callable[[int, Mapping[str, Any]], int]] = {
        # Mamba-2's inner width is twice the model's, as published.
        "n_heads": lambda own, at: 2 * heads if at.get("kind") == "mamba2" else heads,
        "n_kv_heads": lambda own, at: heads if own == at["n_heads"] else 1 if own == 1 else max(1, heads // 2),
        "n_v_heads": lambda own, at: heads * min(2, own // at["n_k_heads"]),
        "rotary_dim": lambda own, at: max(2, 2 * round(own * HEAD_DIM / find_head_width(node) / 2)),
        "chunk_size": lambda own, at: min(own, FASTEST_CHUNK),
        "top_k": lambda own, at: min(own, 2) if at.get("n_experts") else own,
    }

    def rule(key: str, value: int, at: Mapping[str, Any]) -> int:
        if key in kept:
            return value
        if key in rules:
            return rules[key](value, at)
        return fixed.get(key, min(value, AT_MOST.get(key, value)))

    return rule


def find_head_width(node: Mapping[str, Any]) -> int:
    """Return the number of channels per head that rotary embedding may rotate, in the first attention with a position.
    HEAD_DIM if there is none."""
    for block in node["blocks"].values():
        attention = block["attention"]
        for key in ("qk_rope_head_dim", "head_dim"):
            if attention.get(key) and attention.get("position"):
                return attention[key]
    return HEAD_DIM


def resize(node: object, rule: SizeRule) -> Any:
    """Return a copy of a Spec's plain data with small dimensions."""
    if isinstance(node, list):
        return [resize(each, rule) for each in node]
    if not isinstance(node, dict):
        return node
    made = {key: rule(key, each, node) if type(each) is int else resize(each, rule) for key, each in node.items()}
    if isinstance(made.get("groups"), dict):  # there may be more groups than experts now
        made["groups"] = {"count": 1, "open": 1}
    return made


def strip(block: dict[str, Any]) -> dict[str, Any]:
    """Remove the feed-forward of a block, keeping the mixer, norm and scales. Blocks of kinds not in STRIPPED are
    unchanged."""
    if block["kind"] not in STRIPPED:
        return block
    shared = {key: block[key] for key in ("attention", "norm", "residual_scale", "stream_scale")}
    return {"kind": "mixer", **shared}


def merge_equal(blocks: Mapping[str, Any], pattern: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Merge kinds of layer that shrinking has made equal, under the name of the first."""
    names: dict[str, str] = {}
    for name in dict.fromkeys(pattern):
        names[name] = next((first for first in names.values() if blocks[first] == blocks[name]), name)
    merged = {name: {**blocks[name], "attention": rename_lender(blocks[name]["attention"], names)} for name in names}
    return merged, [names[name] for name in pattern]


def rename_lender(attention: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Rename the kinds of layer whose keys or values an attention reads (LENDERS), by `names` (old to new)."""
    lenders = {key: names.get(attention[key], attention[key]) for key in LENDERS if attention.get(key)}
    return {**attention, **lenders}


def find_idle_windows(spec: Decoder, length: int) -> list[int]:
    """List a model's windows and chunks of at least `length` tokens: they hide nothing in sequences of this length."""
    reach = (block.attention.sight.window or block.attention.sight.chunk for block in spec.blocks.values())
    return sorted({each for each in reach if each and each >= length})
