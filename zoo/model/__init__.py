"""The components of a model, an axis a file or a folder, and the towers that are built of them."""

from zoo.model import (  # noqa: F401
    activation,
    attention,
    block,
    channel_mix,
    embedding,
    expert_choice,
    ffn,
    grouped,
    hash_router,
    head,
    mlp_router,
    moe,
    norm,
    position,
    router,
    task_head,
)
from zoo.model.encoder_decoder import EncoderDecoder
from zoo.model.tower import Decoder, Encoder, Topology, Tower

__all__ = ["Decoder", "Encoder", "EncoderDecoder", "Topology", "Tower"]
