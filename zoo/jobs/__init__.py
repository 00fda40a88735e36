"""Plan and run jobs on Hydra: every job is checked before the first one starts (plan), and writes its outcome
(callback, record)."""
