"""Fuzzers: random command lines, and mutated files of every kind that Zoo reads.

A case is one command line beside some files, made from its kind, a seed and its number, so that those three bring it
back. It passes where Zoo ends in time with a result or with one line for each fault (`judge.py`).

    make fuzz MINUTES=10 [KIND=config_json] [SEED=7]
    python tests/fuzz --kind config_json --case 1234      runs one again, and shows it
    python tests/fuzz --corpus                            replays every case that ever failed
"""
