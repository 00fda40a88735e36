"""The configuration tree: Hydra reads the YAML files beside this one."""
