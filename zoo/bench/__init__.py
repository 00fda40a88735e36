"""`zoo bench`: this implementation beside others and beside the machine's own limits, measured in one run."""
