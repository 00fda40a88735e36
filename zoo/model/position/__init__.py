"""Position schemes: the base, and one file for each family."""

from zoo.model.position import relative, relative_logits  # noqa: F401  (registers their kinds)
from zoo.model.position.absolute import Learned, Sinusoidal
from zoo.model.position.base import Position
from zoo.model.position.bias import ALiBi, T5Buckets
from zoo.model.position.none import NoPosition
from zoo.model.position.rotary import RoPE, Scaling

__all__ = ["ALiBi", "Learned", "NoPosition", "Position", "RoPE", "Scaling", "Sinusoidal", "T5Buckets"]
