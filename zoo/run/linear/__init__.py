"""Ways to multiply on a CPU: a registry, a timed choice, and `prepare`, which makes a model ready to serve by them."""

from zoo.run.linear.ready import Prepared, prepare

__all__ = ["Prepared", "prepare"]
