"""Training: settings, objective, optimizer and schedule by kind, the one loop, and what a run leaves behind."""
