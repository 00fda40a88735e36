"""What an architecture costs, from its Spec alone: parameters, FLOPs, KV cache and memory. Never imports torch."""

from zoo.costs.price import DTYPES, price

__all__ = ["DTYPES", "price"]
