"""Position schemes: the base, and one file for each family."""
