"""Encoder-decoders."""

from families import Case

CASES: list[Case] = []
