"""Generation: token ids in, token ids out (engine, cache, sample); and the same for text (text)."""
