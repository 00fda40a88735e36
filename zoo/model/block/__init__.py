"""One layer: where the norms stand around attention and feed-forward. The base, and one file a placement."""

from zoo.model.block.altup import AltUp
from zoo.model.block.attention_residual import AttentionResidual
from zoo.model.block.base import Block
from zoo.model.block.bottleneck import Bottleneck
from zoo.model.block.feed_forward import FeedForward
from zoo.model.block.hyper import Hyper
from zoo.model.block.mixer import Mixer
from zoo.model.block.parallel import Parallel
from zoo.model.block.post import Post
from zoo.model.block.post_conv import PostConv
from zoo.model.block.post_inside import PostInside
from zoo.model.block.pre import Pre
from zoo.model.block.sandwich import Sandwich
from zoo.model.block.shared_attention import SharedAttention
from zoo.model.block.shortcut import Shortcut

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
