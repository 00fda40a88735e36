"""Attention and recurrent mixers: the base, and one file for each family."""
