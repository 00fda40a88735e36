"""Questions asked of the price backwards: what is the most that fits, and what shape costs so much.

Every answer is searched for on the exact price, by bisection where it only grows, so that windows that fill up, blocks
of a paged cache and latents count as they do in `zoo stats`. Plain data comes out. No torch.
"""

from zoo.analysis.solve.cache import find_smaller_caches
from zoo.analysis.solve.fit import Room, find_largest_batch, find_largest_context
from zoo.analysis.solve.gpus import find_fewest_gpus
from zoo.analysis.solve.shape import Budget, solve_shapes

__all__ = [
    "Budget",
    "Room",
    "find_fewest_gpus",
    "find_largest_batch",
    "find_largest_context",
    "find_smaller_caches",
    "solve_shapes",
]
