"""Whether a run ended where README says that `make demo` ends: `python tests/support/demo_loss.py RUN`.

README states the bound, once, in the words "a validation loss of at most N"; it is read from there.
"""

import json
import re
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def stated(text: str) -> float:
    bounds = re.findall(r"validation\s+loss\s+of\s+at\s+most[\s*]+(\d+\.\d+)", text)
    if len(bounds) != 1:
        sys.exit(f"README must say once 'a validation loss of at most N', and says it {len(bounds)} times")
    return float(bounds[0])


def reached(run: Path) -> float:
    """Read the last validation loss that a run measured, in nats per token."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["val_loss"] for line in lines if "val_loss" in line][-1]


def main(run: Path) -> int:
    bound, loss = stated(README.read_text(encoding="utf-8")), reached(run)
    within = loss <= bound
    print(f"validation loss {loss:.3f}, {'within' if within else 'ABOVE'} the {bound} that README states")
    print(f"the curve is {run / 'loss.png'}")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
