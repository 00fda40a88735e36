"""Functions of the families' language (expression.py), a file for each topic. Importing this registers them."""

from zoo.families.codecs import encoder, layers, loops, rope, sharing, tasks, words  # noqa: F401
