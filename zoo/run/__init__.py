"""Build and run a Spec: its weights as torch modules (layer), on a device (builder), with the fastest threads and dtype
(threads, dtypes), and with products in float8 (fp8)."""
