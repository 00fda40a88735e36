"""Translate published models: a config.json to a model in Zoo's grammar, and back (binding.py). Needs no torch."""
