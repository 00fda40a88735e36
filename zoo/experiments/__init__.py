"""Run recipes: experiments whose expected results are written down before the runs, and whose verdicts are stored."""
