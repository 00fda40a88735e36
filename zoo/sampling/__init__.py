"""From logits to tokens: sampling options, the choice for a batch, grammars, and verification of drafts."""
