"""Checkpoints. Ours (store): safetensors beside a YAML of the architecture and a JSON of counters, written atomically.
Hugging Face's (hf, mapping, inverse): read, written, and verified by transformers' logits."""
