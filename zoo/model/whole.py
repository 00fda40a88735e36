"""Check that the parts of a whole model agree: vocabularies, the widths of shared tables, the heads of a bias, and
options that act only together with another part. Pieces of one rank or one pipeline stage are not checked."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from zoo.model.channels import Channel, Fault
from zoo.model.head import TABLE
from zoo.model.layer_loop import find_loop_faults
from zoo.spec import Linear, Tied

if TYPE_CHECKING:
    from zoo.model.tower import Tower

ENCODER_TOKENS = f"encoder.{TABLE}"
"""Path of the encoder's token table. A decoder's embedding can read it; no other table can be read by another tower."""


def find_misfits(tower: Tower) -> Iterator[Fault]:
    """Yield the faults between parts of one tower, each as a field's path and a line about it."""
    yield from _compare_vocabularies(tower)
    yield from _check_tied_head(tower)
    yield from _check_row_head(tower)
    yield from _check_positions(tower)
    yield from _check_embedding(tower)
    count = 1 if tower.streams is None else tower.streams.count
    for name, block in tower.blocks.items():
        if block.streams != count:
            kind = "altup" if block.kind == "altup" else "weighted"
            would = f"streams: {{kind: {kind}, count: {block.streams}}}" if block.streams > 1 else "block: hyper"
            yield ("blocks", name), f"takes {block.streams} vectors of a token, and the model has {count} ({would})"
    for channel in Channel.named.values():
        yield from list(channel.find_faults(tower)) or _check_giver(tower, channel)
    yield from find_loop_faults(tower)


def _check_giver(tower: Tower, channel: type[Channel]) -> Iterator[Fault]:
    """Yield a fault if layers read a channel in which neither a layer nor a loop gives a value."""
    read = channel.name in tower.channels and not channel.shared
    if read and tower.loop is None and not any(channel.name in uses.gives for uses in tower.uses.values()):
        yield ("blocks",), f"read the channel '{channel.name}', and no layer gives a value in it"


def find_misfits_between(encoder: Tower, decoder: Tower) -> Iterator[Fault]:
    """Yield the faults between parts of an encoder-decoder, its towers included."""
    for name, tower in (("encoder", encoder), ("decoder", decoder)):
        yield from (((name, *path), text) for path, text in find_misfits(tower))
    yield from ((("encoder", *path), text) for path, text in refuse_borrowed_table(encoder))
    yield from _check_decoder_table(encoder, decoder)
    yield from _compare_widths(encoder, decoder)
    if decoder.prefix_lm:  # type: ignore[attr-defined]
        yield ("decoder", "prefix_lm"), "the encoder reads the prompt, so no prefix reaches the decoder (leave it out)"
    if decoder.served is not decoder:
        yield ("decoder", "mtp"), "is of a decoder that reads a text alone, and here an encoder reads it (leave it out)"
    if encoder.max_seq_len != decoder.max_seq_len and encoder.position.limit is None:
        found = f"is {encoder.max_seq_len}, and no position of the encoder's ends there"
        yield ("encoder", "max_seq_len"), f"{found} (the decoder's {decoder.max_seq_len} for both)"


def _compare_widths(encoder: Tower, decoder: Tower) -> Iterator[Fault]:
    """Yield a fault for each kind of decoder layer that reads vectors of another width than the encoder's output."""
    given = encoder.out_width or encoder.d_model
    for name, block in decoder.blocks.items():
        memory = block.cross and block.cross.memory
        if memory is None or given == (memory.width or decoder.d_model):
            continue
        if not block.crosses:
            found = f"is read by the decoder's attention, {decoder.d_model} wide, and the encoder gives {given}"
            would = f"the same d_model for both, or encoder.out_width: {decoder.d_model}"
            yield ("decoder", "blocks", name, "cross"), f"{found} ({would})"
            continue
        read = memory.width or decoder.d_model
        found = f"reads vectors {read} wide, the encoder gives {given}"
        would = f"{given}, the same d_model for both, or encoder.out_width: {read}"
        yield ("decoder", "blocks", name, "cross", "memory_width"), f"{found} ({would})"


def refuse_borrowed_table(tower: Tower) -> Iterator[Fault]:
    """Yield a fault if a tower without an encoder next to it reads another tower's table."""
    tied = getattr(tower.embedding, "tied", None)
    if tied is not None:
        yield ("embedding", "tied"), f"is {tied!r}, and no model around this one has that table (null)"


def _compare_vocabularies(tower: Tower) -> Iterator[Fault]:
    for name in ("embedding", "head"):
        part = getattr(tower, name)
        found = getattr(part, "vocab_size", None)
        fewer = found is not None and found < tower.vocab_size and part.kind == "lm" and not part.tied
        if found is not None and found != tower.vocab_size and not fewer:
            would = f"vocab_size: {found} for the whole model, or leave it out"
            yield (name, "vocab_size"), f"is {found}, the model's vocabulary has {tower.vocab_size} ({would})"
    for name, block in tower.blocks.items():
        for path in (("ffn", "router"), ("ngrams",)):
            part = functools.reduce(lambda each, step: getattr(each, step, None), path, block)
            found = getattr(part, "vocab_size", None)
            if found not in (None, tower.vocab_size):
                place = ("blocks", name, *path, "vocab_size")
                yield place, f"is {found}, the model's vocabulary has {tower.vocab_size} (the same)"


def _check_tied_head(tower: Tower) -> Iterator[Fault]:
    """Yield a fault if a head that reads the token table takes vectors of another width than the table's."""
    out = tower.head.parts(tower.out_width or tower.d_model).get("out")
    if not isinstance(out, Tied) or not isinstance(out.of, Linear):
        return
    width = _table_width(tower)
    if out.of.d_in != width:
        found = f"the token table is {width} wide, the vectors that the head reads are {out.of.d_in}"
        yield ("head", "tied"), f"{found} (the same width for both, or head.tied: false)"


def _check_row_head(tower: Tower) -> Iterator[Fault]:
    """Yield a fault if a decoder's head reads a row's first token or a question token, which see no later tokens."""
    if tower.causal and getattr(tower.head, "pooling", None) == "cls":
        found = "is cls, the first token, and in a decoder that sees no other"
        yield ("head", "pooling"), f"{found} (last or mean)"
    if tower.causal and tower.head.asks:
        found = f"'{tower.head.kind}' compares tokens with a question after them, and a decoder's see no later one"
        yield ("head", "kind"), f"{found} (kind: encoder)"


def _check_positions(tower: Tower) -> Iterator[Fault]:
    """Yield the faults of layers' position schemes: a learned bias must have a column for each head of its attention; a
    table for distances between blocks needs transient-global attention; a scheme that adds to the embedding must be the
    model's own."""
    for name, block in tower.blocks.items():
        position, heads = block.attention.positioning, block.attention.score_heads
        path = ("blocks", name, "attention", "position")
        if position is not None and position.bias_heads not in (None, heads):
            found = f"is {position.bias_heads}, the attention has {heads} heads"
            yield (*path, "n_heads"), f"{found} ({heads}, or leave it out)"
        if position is not None and position.kind == "t5_globals" and block.attention.kind != "transient_global":
            found = "has a table for distances between blocks, and the attention has none"
            yield (*path, "kind"), f"{found} (t5, or attention: transient_global)"
        if position is not None and position.embeds and position != tower.position:
            found = f"'{position.kind}' is added at the embedding, where the model's '{tower.position.kind}' stands"
            yield path, f"{found} (position: {position.kind} for the whole model, or none here)"


def _check_embedding(tower: Tower) -> Iterator[Fault]:
    """Yield the faults of the embedding. The order of norm or projection matters only if something is added between the
    table and the first layer. `mask_id` counts masked tokens in whole rows, which a causal model may not see."""
    embedding = tower.embedding
    between = tower.position.embeds
    if getattr(embedding, "norm_first", False) and not between:
        found = f"position '{tower.position.kind}' adds nothing at the embedding, so nothing comes after the norm"
        yield ("embedding", "norm_first"), f"{found} (leave it out)"
    if tower.causal and getattr(embedding, "mask_id", None) is not None:
        found = f"is {embedding.mask_id}, whose share of a whole row is counted, in a model of kind '{tower.kind}'"  # type: ignore[attr-defined]
        yield ("embedding", "mask_id"), f"{found} (kind: encoder, or leave it out)"
    others = (getattr(embedding, name, None) for name in ("norm", "n_types", "n_tasks", "trigram"))
    if getattr(embedding, "project_first", False) and not between and not any(others):
        found = "no norm, types or positions stand between the table and its projection"
        yield ("embedding", "project_first"), f"{found} (leave it out)"


def _check_decoder_table(encoder: Tower, decoder: Tower) -> Iterator[Fault]:
    tied = getattr(decoder.embedding, "tied", None)
    if tied is None:
        return
    if tied != ENCODER_TOKENS:
        yield ("decoder", "embedding", "tied"), f"is {tied!r}, which is no table here ({ENCODER_TOKENS}, or null)"
        return
    own = "or decoder.embedding.tied: null"
    apart, lent = (getattr(tower.embedding, "apart_id", None) for tower in (decoder, encoder))
    if apart is not None and lent is None:
        found = f"is {apart}, and the encoder, whose vectors the decoder reads, has none apart"
        yield ("decoder", "embedding", "apart_id"), f"{found} (encoder.embedding.apart_id, {own})"
    if encoder.vocab_size != decoder.vocab_size:
        found = f"is {decoder.vocab_size}, and the table that the decoder reads, {ENCODER_TOKENS}, has"
        yield ("decoder", "vocab_size"), f"{found} {encoder.vocab_size} rows (one vocabulary for both, {own})"
    widths = [_table_width(tower) for tower in (decoder, encoder)]
    if widths[0] != widths[1]:
        found = f"is {widths[0]}, and the table that the decoder reads, {ENCODER_TOKENS}, is {widths[1]} wide"
        yield ("decoder", "embedding", "width"), f"{found} (one width for both, {own})"


def _table_width(tower: Tower) -> int:
    tokens = tower.embedding.parts(tower.d_model)["tokens"]
    table = tokens.of if isinstance(tokens, Tied) else tokens
    return table.shapes()["weight"][1]  # type: ignore[union-attr]
