"""Checkpoints: ours (store)."""
