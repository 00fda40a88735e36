"""Dequantise checkpoints as they are read: the methods that a config.json names, and their layouts in files."""

from zoo.checkpoint.quantised.methods import FIELD as FIELD
from zoo.checkpoint.quantised.methods import unpack_headers as unpack_headers
