"""Write the font of drawings: `python tests/support/inter_subset.py FOLDER`, with a folder of Inter's .woff files.

Inter's static files are on npm (`npm pack @fontsource/inter`). Kept are its Latin letters; kerning, features and hints
are dropped, so that a text is exactly as wide as the sum of its letters' widths.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont

FONT = Path(__file__).parents[2] / "zoo" / "drawing" / "inter.json"
WEIGHTS = {"regular": 400, "bold": 600}


def subset(file: Path) -> dict[str, object]:
    """Read one weight: the widths of its letters in thousandths of the font's size, and its WOFF in base64."""
    options = Options(layout_features=[], hinting=False, notdef_outline=True)
    options.drop_tables += ["GPOS", "GSUB", "GDEF", "STAT", "DSIG"]
    font = TTFont(file)
    letters = [each for each in font.getBestCmap() if each >= 0x20 and each not in (0x200B, 0xFEFF)]
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=letters)
    subsetter.subset(font)
    scale = 1000 / font["head"].unitsPerEm
    widths = {chr(at): round(font["hmtx"][name][0] * scale, 1) for at, name in sorted(font.getBestCmap().items())}
    font["OS/2"].usWeightClass = 400 if font["OS/2"].usWeightClass == 400 else 700  # what matplotlib's own fonts have
    written = io.BytesIO()
    font.flavor = "woff"
    font.save(written)
    return {"widths": widths, "woff": base64.b64encode(written.getvalue()).decode()}


def main() -> None:
    folder = Path(sys.argv[1])
    found = {name: subset(folder / f"inter-latin-{weight}-normal.woff") for name, weight in WEIGHTS.items()}
    FONT.write_text(json.dumps({"family": "Inter", **found}, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
