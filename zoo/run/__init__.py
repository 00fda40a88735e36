"""A Spec at work: its weights as torch modules (layer), built on a device (builder), its products in float8 (fp8)."""
