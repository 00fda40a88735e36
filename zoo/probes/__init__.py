"""Probes: synthetic tasks that each measure one ability of an architecture, at sizes that a CPU trains in seconds."""
