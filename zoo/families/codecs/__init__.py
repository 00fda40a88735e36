"""Functions of the families' language (expression.py), by what they are about. Importing this registers them."""

from zoo.families.codecs import encoder, layers, rope, words  # noqa: F401
