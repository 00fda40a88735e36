"""Published models: from a config.json to a model in our grammar (family, expression, codecs). No torch."""
