"""Run recipes: experiments whose expectations are written down before they run, and whose verdicts are kept."""
