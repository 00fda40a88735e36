"""Checkpoints. Ours (store): safetensors with the architecture as YAML and counters as JSON, written atomically.
Hugging Face's (hf): read, written (mapping for tensors, inverse for config.json), verified by transformers' logits."""
