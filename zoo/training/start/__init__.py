"""Start a run from existing weights: fit them to the model, freeze some, or add low-rank adapters."""
