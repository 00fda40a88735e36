"""Price an architecture from its Spec alone: parameters, FLOPs, KV cache and memory. Never imports torch."""

from zoo.costs.price import price
from zoo.costs.setup import DTYPES, Setup
