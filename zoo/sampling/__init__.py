"""From logits to tokens: the options of a request, the choice for a batch, grammars, and drafts to be verified."""
