"""Plan and run jobs on Hydra. All jobs are checked before the first starts, and each writes its result.json."""
