"""Turn logits into tokens: sampling options, sampling for a batch, grammars, and verification of drafts."""
