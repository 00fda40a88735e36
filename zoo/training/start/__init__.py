"""Start a run from weights: read and fitted to the model, partly frozen, or adapted by low-rank adapters."""
