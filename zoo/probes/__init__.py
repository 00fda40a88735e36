"""Probes: synthetic tasks that tell what an architecture can do, and how far, at sizes that a CPU trains in seconds."""
