"""Port an architecture of transformers: draft the YAML of a family beside a tiny random reference model, and hold the
two models against each other. Both are built, so torch is loaded."""
