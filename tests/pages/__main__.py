"""Write a page of docs/: `python tests/pages NAME [ARGUMENTS]`, NAME that of a file beside this one without `_page`."""

import runpy
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    sys.path[:1] = [str(TESTS), str(TESTS.parent)]  # the tree that these files are of, whatever is installed
    files = Path(__file__).parent.glob("*_page.py")
    written = [each for each in files if 'if __name__ == "__main__":' in each.read_text(encoding="utf-8")]
    names = sorted(each.stem.removesuffix("_page") for each in written)
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        sys.exit(f"python tests/pages NAME, one of: {', '.join(names)}")
    name = sys.argv.pop(1)
    runpy.run_module(f"pages.{name}_page", run_name="__main__", alter_sys=True)
