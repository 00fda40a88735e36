"""Runs and sweeps on Hydra: every job is checked before the first one starts (plan), and leaves a record (record)."""
