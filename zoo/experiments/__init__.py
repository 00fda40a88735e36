"""Run recipes: experiments whose expectations are written down before the runs, and whose verdicts are stored."""
