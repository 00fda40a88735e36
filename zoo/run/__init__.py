"""Build and run a Spec: weights as torch modules (layer) on a device (builder), threads and dtypes, float8 (fp8)."""
