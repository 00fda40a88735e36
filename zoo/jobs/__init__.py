"""Plan and run jobs on Hydra: all jobs are checked before the first starts; each writes its outcome (callback)."""
