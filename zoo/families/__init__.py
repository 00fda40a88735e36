"""Translate published models: a config.json to a model in our grammar, and back (binding.py). Needs no torch."""
