"""Read what strangers may have written: JSON and YAML within budgets, paths within their folder, text for a terminal.

Every loader of a model, a run, a recipe or a data set reads its files through this room (docs/security.md)."""
