"""Train models: settings, objective, optimizer and schedule by kind, the one loop, and the files of a run."""
