"""Verdicts on architectures: tests, intervals and power over seeds, with searched learning rates and diverged runs."""
