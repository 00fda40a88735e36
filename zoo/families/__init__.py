"""Published models: from a config.json to a model in our grammar, and back (binding). Needs no torch."""
