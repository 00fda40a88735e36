"""Matrix products on a CPU: a registry of ways to compute them, a timed choice, and `prepare`, which applies it."""

from zoo.run.linear.ready import PreparedModel, prepare

__all__ = ["PreparedModel", "prepare"]
