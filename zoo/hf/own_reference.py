"""Run a folder's model in transformers with the classes of zoo.hf: `python own_reference.py FOLDER PLACE`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: its module names would hide others
    import zoo.hf  # noqa: F401 - registers the classes
    from zoo.checkpoint.reference import main

    main(Path(sys.argv[1]), Path(sys.argv[2]))
