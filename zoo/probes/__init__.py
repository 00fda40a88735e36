"""Probes: synthetic tasks, each of which measures one ability of an architecture, at sizes that a CPU trains in
seconds."""
