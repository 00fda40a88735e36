"""Every field of every choice in conf/ bites: another value of it is refused in one line, or changes what the model
gives, its initial values or its price. What it changes must also run. `field_trials.py` makes the values and the
inputs."""

import functools

import pytest

from support import field_trials
from support.field_trial_models import BASES
from support.packaged_specs import one_in
from zoo.compose import load
from zoo.errors import ConfigError
from zoo.model.block.base import Block
from zoo.model.position.bias import ALiBi
from zoo.model.tower import Topology

AGREE = {
    "embedding 'tokens'.vocab_size": "the model's",
    "head 'mlm'.vocab_size": "the model's",
    "head 'none'.vocab_size": "the model's",
    **{f"attention '{kind}'.d_model": "the model's" for kind in ("mamba", "fourier", "rwkv", "rwkv7")},
    "ffn 'channel_mix'.d_model": "the model's",
    "position 't5'.n_heads": "the attention's",
    "position 't5_globals'.n_heads": "the attention's",
    "position 't5_globals'.layerwise": "always one table",
    **{f"loop 'restarting'.{name}": "the pattern's" for name in ("start", "end", "passes")},
    "position 'relative_logits'.n_heads": "the attention's",
    "out_conv 'residual'.d_model": "the model's",
    "attention 'transient_global'.n_heads": "the position's",
    "attention 'transient_global'.position": "`t5_globals`, of which there is one kind",
    "attention 'side_by_side'.softmax": "`gqa`, of which there is one kind",
    "attention 'in_turn'.softmax": "`joined_gqa`, of which there is one kind",
    "block 'shared_attention'.attention": "`in_turn`, of which there is one kind",
    **{
        f"attention 'joined_gqa'.{name}": "none beside another mixer"
        for name in ("kv_from", "short_conv", "value_residual")
    },
    "attention 'joined_gqa'.memory_width": "the stream's and the embedding's",
    "norm 'rmsnorm'.heads": "set by qk_norm.over",
    "norm 'layernorm'.heads": "set by qk_norm.over",
    "attention 'disentangled'.position": "`relative`, of which there is one kind",
    "router 'sparsemixer'.top_k": "always 2",
    "router 'hash'.vocab_size": "the model's",
    "attention 'bottleneck'.width": "the block's",
    "block 'feed_forward'.attention": "always none",
    "attention 'rwkv7'.values_from": "names a kind of layer, where there are several",
    **{f"attention '{kind}'.kv_from": "names a kind of layer, where there are several" for kind in ("gqa", "mla")},
    "attention 'gqa'.memory_width": "that of the encoder's output",
    **{
        f"attention '{kind}'.window_kind": "no centred one beside a convolution or another mixer"
        for kind in ("joined_gqa", "dynamic_gqa")
    },
    **{f"attention 'dynamic_gqa'.{name}": "gqa's alone" for name in ("kv_from", "memory_width")},
    **{f"block 'attention_residual'.{name}": "its reads'" for name in ("residual_scale", "stream_scale")},
    "depth_read 'softmax'.n_reads": "the attention's",
    "norm 'l2_clip'.heads": "set by qk_norm.over",
    **{f"attention 'merged'.{name}": "the attention's" for name in ("n_heads", "n_kv_heads", "head_dim", "v_head_dim")},
    "block 'altup'.n_streams": "that of streams",
    "block 'altup'.out_scale": "of one stream",
    "streams 'altup'.count": "that of block.n_streams",
    **{f"streams '{kind}'.count": "that of block.connection.n_streams" for kind in ("mean", "weighted", "gated")},
    **{f"connection '{kind}'.n_streams": "that of streams" for kind in ("sinkhorn", "independent", "gated")},
    "ngrams 'hashed'.n_streams": "that of streams",
    "ngrams 'hashed'.d_model": "the model's",
    "ngrams 'hashed'.vocab_size": "the model's",
    **{f"block 'hyper'.{name}": "its connection's" for name in ("residual_scale", "stream_scale")},
    "per_layer 'tokens'.n_layers": "the model's",
    "per_layer 'tokens'.width": "that of block.layer_input",
    "per_layer 'projection'.n_layers": "the model's",
    "per_layer 'projection'.width": "that of block.layer_input",
    "layer_input 'gated'.width": "that of embedding.per_layer",
    **{f"block '{kind}'.layer_input": "one kind, where there is embedding.per_layer" for kind in ("sandwich", "altup")},
    "indexer 'shared'.top_k": "that of the layer that chooses",
    "compressor 'overlapping'.rate": "that of the indexer's compressor",
}
"""Fields whose every other value is refused, as something else says what they must be."""

NODES = ("blocks", "pattern", "embedding", "streams", "position", "norm", "head", "init", "encoder", "decoder")
"""Fields of a model that are nodes, whose own fields are tried, or that `layers` and `pattern` make."""


@functools.cache
def verdicts(name):
    """What became of each change of a base."""
    return [(change, field_trials.base(name).verdict(change)) for change in field_trials.changes(name)]


@pytest.mark.parametrize("name", one_in(90, BASES))
def test_another_value_is_refused_in_one_line_or_changes_what_a_model_gives_or_costs(name):
    found = verdicts(name)
    assert {str(change): what for change, what in found if what.startswith(("idle", "breaks"))} == {}
    for key in field_trials.NULL_IS_ONE_OF:
        stated = [what for change, what in found if (change.inner or change.key).endswith(key) and what == "same"]
        assert len(stated) <= len(field_trials.base(name).spec.towers()) + 1


@pytest.mark.slow
def test_every_field_of_every_kind_was_tried_and_acts_in_some_model():
    tried = {}
    for name in BASES:
        for change, what in verdicts(name):
            tried.setdefault(change.owner, []).append(what.split(":")[0])
    refused = {owner for owner, what in tried.items() if "bites" not in what and not owner.startswith("key ")}
    assert sorted(refused) == sorted({*AGREE, *_placeless()})
    kinds = [
        kind for axis in field_trials.BY_AXIS.values() for kind in axis.kinds.values() if field_trials.is_ours(kind)
    ]
    kinds = [kind for kind in kinds if kind.__module__.startswith("zoo.model.")]  # an optimizer's fields are no model's
    kinds = [kind for kind in kinds if kind.axis != "shared"]  # which a block makes of its own fields
    fields = {
        (f"{field_trials.name_kind(kind)}.{field.name}", field.name, kind) for kind in kinds for field in kind.fields()
    }
    left = {owner for owner, name, kind in fields if not (issubclass(kind, Topology) and name in NODES)}
    assert sorted(left - set(tried)) == []
    assert sum(len(what) for what in tried.values()) > 1500


def _placeless():
    """The fields `cross` and `layer_input` of blocks that have no place for them."""
    for name, kind in Block.kinds.items():
        if "cross" not in kind.divided:
            yield f"block '{name}'.cross"
        if not kind.takes_input:
            yield f"block '{name}'.layer_input"


@pytest.mark.parametrize(
    ("model", "overrides", "line"),
    [
        ("llama-tiny", ["+embedding.norm_first=true"], "embedding: norm_first places the norm"),
        ("llama-tiny", ["+embedding.project_bias=true"], "embedding: project_bias is of the projection"),
        ("llama-tiny", ["+embedding.project_first=true"], "embedding: project_first is of the projection"),
        (
            "llama-tiny",
            ["attention=mla", "attention={kv_from: near, short_conv: 3}"],
            "attention: short_conv is of latents",
        ),
        (
            "llama-tiny",
            ["attention=mla", "attention={gate: {reads: latent}}"],
            "attention: gate.reads=latent is of the latent of queries",
        ),
        ("llama-tiny", ["attention=dsa", "attention.window=4"], "attention: window=4 beside an indexer"),
        (
            "llama-tiny",
            ["ffn=moe", "router=sigmoid_topk", "router.groups={count: 2, open: 2, closed_rank: zero}"],
            "router.groups: closed_rank=zero is of closed groups",
        ),
        ("llama-tiny", ["position.learned=true"], "position: learned trains a factor for each pair of rotary_dim"),
        (
            "llama-tiny",
            ["attention.qk_norm={over: whole, last: true}"],
            "attention.qk_norm: last: comes after heads are split",
        ),
        ("llama-tiny", ["+embedding.width=64", "head.tied=true"], "head.tied: the token table is 64 wide"),
        ("bert-base", ["cross=mha"], "cross-attention has nothing to read in a model of kind 'encoder'"),
        ("t5-small", ["+decoder.vocab_size=40000"], "decoder.vocab_size: is 40000"),
        ("llama-tiny", ["norm.heads=2"], "norm: heads=2 is for queries and keys alone"),
        ("t5-small", ["cross.window=4"], "cross: window counts the places of tokens"),
        ("t5-small", ["cross.tempering={kind: log}"], "cross: tempering counts the places of tokens"),
        ("t5-small", ["position.n_heads=1"], "position.n_heads: is 1, the attention has 8 heads"),
        ("llama-tiny", ["+embedding.tied=foo"], "embedding.tied: is 'foo'"),
        ("t5-small", ["+decoder.embedding.tied=foo"], "decoder.embedding.tied: is 'foo'"),
        ("llama-tiny", ["position=rope_yarn", "position.scaling.mscale=0.7"], "mscale=0.7, mscale_all_dim=None"),
        ("llama-tiny", ["attention=mla", "attention.position={kind: sinusoidal}"], "'sinusoidal' is added at the"),
    ],
)
def test_what_was_once_priced_and_could_not_run_or_changed_nothing_is_refused_in_one_line(model, overrides, line):
    with pytest.raises(ConfigError) as caught:
        load(model, overrides)
    assert any(line in fault for fault in caught.value.faults), caught.value.faults
    assert all(len(fault.splitlines()) == 1 for fault in caught.value.faults)


@pytest.mark.parametrize("n_heads", [1, 3, 4, 6, 12, 40])
def test_the_slopes_of_mpt_are_those_of_the_paper(n_heads):
    power = 1 << (n_heads - 1).bit_length()  # MPT's build_mpt_alibi_tensor: the next power of two, odd places first
    every = [2 ** (-8 * (place + 1) / power) for place in range(power)]
    theirs = every if power == n_heads else [*every[1::2], *every[::2]][:n_heads]
    assert ALiBi().slopes_of(n_heads) == theirs
