"""Register the functions of the families' language (expression.py), one file per topic."""

from zoo.families.codecs import encoder, layers, loops, rope, sharing, tasks, words  # noqa: F401
