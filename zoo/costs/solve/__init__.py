"""Questions asked of the price backwards: what is the most that fits, and what shape costs so much.

Every answer is searched for on the exact price, by bisection where it only grows, so that windows that fill up, blocks
of a paged cache and latents count as they do in `zoo stats`. Plain data comes out. No torch.
"""

from zoo.costs.solve.cache import smaller_caches
from zoo.costs.solve.fit import Room, largest_batch, largest_context
from zoo.costs.solve.gpus import smallest_gpus
from zoo.costs.solve.shape import Budget, shapes

__all__ = ["Budget", "Room", "largest_batch", "largest_context", "shapes", "smaller_caches", "smallest_gpus"]
