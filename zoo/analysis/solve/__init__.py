"""Solve for settings: the largest batch or context that fits, the fewest GPUs, the fastest mesh, the shape for a
budget.

Each answer is searched on the exact price, by bisection if the price is monotonic. So windows, pages of a cache and
latents count as in `zoo stats`. Answers are plain data. Nothing here imports torch.
"""

from zoo.analysis.solve.cache_budget import find_smaller_caches
from zoo.analysis.solve.gpus import find_fewest_gpus
from zoo.analysis.solve.largest_fit import Room, find_largest_batch, find_largest_context
from zoo.analysis.solve.mesh_search import MeshSearch, find_meshes
from zoo.analysis.solve.shape import ShapeBudget, solve_shapes
