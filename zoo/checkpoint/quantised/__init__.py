"""Quantised checkpoints: which method a config.json names, how its weights lie in files, and their values."""

from zoo.checkpoint.quantised.methods import FIELD as FIELD
from zoo.checkpoint.quantised.methods import METHODS as METHODS
from zoo.checkpoint.quantised.methods import find_method as find_method
from zoo.checkpoint.quantised.methods import unpack_headers as unpack_headers
