"""Probes: synthetic tasks that measure one ability of an architecture each, at sizes that a CPU trains in seconds."""
