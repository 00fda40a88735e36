"""The kinds of files, each with its mutations and the commands that read it."""
