"""Runs the command line from a checkout that is not installed: `python cli.py stats llama3-8b`."""

from zoo.cli import main

if __name__ == "__main__":
    main()
