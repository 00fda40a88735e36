"""Save and load checkpoints. Zoo's own (store): safetensors, the architecture as YAML and counters as JSON, written
atomically. Hugging Face's (hf): tensors by mapping.py, config.json by inverse.py, verified by transformers' logits."""
