"""Define the colours of drawings by purpose, for light and dark backgrounds."""

from __future__ import annotations

COLOURS: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#14171c"),
    "panel": ("#f6f7f9", "#1c2027"),
    "ink": ("#171b21", "#e9ecf0"),
    "muted": ("#5b6470", "#a3adba"),
    "line": ("#cdd3da", "#3b434e"),
    "wire": ("#8a94a0", "#77828f"),
    "grid": ("#e6e9ed", "#2a3038"),
    "attention": ("#dce8fb", "#1f3556"),
    "attention-line": ("#5d8bd6", "#5e8fdc"),
    "recurrent": ("#d8f0e6", "#173f33"),
    "recurrent-line": ("#3f9f7d", "#4cae8b"),
    "ffn": ("#fdeccf", "#4a3715"),
    "ffn-line": ("#d39a3a", "#cf9a42"),
    "experts": ("#fbdfd2", "#502a1c"),
    "experts-line": ("#d2774b", "#d5805a"),
    "norm": ("#eceff2", "#2a3038"),
    "norm-line": ("#aab2bc", "#66707c"),
    "table": ("#e9e2f8", "#33294d"),
    "table-line": ("#8f78c9", "#957fd0"),
    "other": ("#e3e8ed", "#2b333d"),
    "other-line": ("#8893a0", "#7d8997"),
    "lit": ("#d6336c", "#ff6b9d"),
    "heat-0": ("#edf1f6", "#1d232b"),
    "heat-1": ("#c9dcf0", "#1f3a55"),
    "heat-2": ("#8fb8de", "#2c5f8e"),
    "heat-3": ("#3d7db8", "#3a79b3"),
    "heat-4": ("#1f5f9e", "#8cc0ee"),
    "on-heat-3": ("#ffffff", "#ffffff"),
    "on-heat-4": ("#ffffff", "#0e1116"),
}
"""Each colour's value in light and in dark mode. A component's border colour has the suffix `-line`."""


def write_style(scope: str, used: set[str]) -> str:
    """Return the CSS that colours elements below the selector `scope`: fills as `.f-NAME`, lines as `.s-NAME`.

    The reader's colour scheme is followed, unless the drawing has the class `light` or `dark`.
    """
    names = sorted(used)
    light, dark = ("".join(_rules("{0}", name, COLOURS[name][at]) for name in names) for at in (0, 1))
    asked = dark.replace("{0}", f"{scope}:not(.light)")
    stated = dark.replace("{0}", f"{scope}.dark")
    return light.replace("{0}", scope) + f"@media (prefers-color-scheme:dark){{{asked}}}" + stated


def _rules(scope: str, name: str, value: str) -> str:
    return f"{scope} .f-{name}{{fill:{value}}}{scope} .s-{name}{{stroke:{value}}}"
