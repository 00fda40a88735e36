"""One layer: where the norms stand around attention and feed-forward. The base; those of sub-layers on one stream; a
file for each other."""

from zoo.model.block.altup import AltUp
from zoo.model.block.attention_residual import AttentionResidual
from zoo.model.block.base import Block
from zoo.model.block.bottleneck import Bottleneck
from zoo.model.block.hyper import Hyper
from zoo.model.block.parallel import Parallel
from zoo.model.block.post_conv import PostConv
from zoo.model.block.shared_attention import SharedAttention
from zoo.model.block.shortcut import Shortcut
from zoo.model.block.sublayers import FeedForward, Mixer, Post, PostInside, Pre, Sandwich

__all__ = [
    "AltUp",
    "AttentionResidual",
    "Block",
    "Bottleneck",
    "FeedForward",
    "Hyper",
    "Mixer",
    "Parallel",
    "Post",
    "PostConv",
    "PostInside",
    "Pre",
    "Sandwich",
    "SharedAttention",
    "Shortcut",
]
