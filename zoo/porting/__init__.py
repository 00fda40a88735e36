"""Port an architecture of transformers: draft the YAML of a family by search, comparing the described model with a tiny
random reference model of transformers at each step (`zoo family new`). Loads torch."""
