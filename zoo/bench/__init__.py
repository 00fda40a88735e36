"""Measure speed (`zoo bench`): zoo against other implementations and against the machine's limits, in one run."""
