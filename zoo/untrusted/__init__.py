"""Read untrusted files: JSON and YAML within size budgets, paths within their folder, text made safe for a terminal.

Every loader of a model, a run, a recipe or a data set reads files through this package (docs/security.md).
"""
