"""Odd values: what a stranger, or a slip of the hand, may put where Zoo expects something else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

SECRET = "SECRET-5f1c"
"""What stands in the files and the variable that no case may show or copy."""
VARIABLE = "ZOO_FUZZ_SECRET"


@dataclass(frozen=True)
class Raw:
    """Text that is written into a JSON or YAML file as it is: numbers that Python's writer refuses, and tags."""

    text: str


@dataclass(frozen=True)
class Place:
    """The folder of one case: it works in `folder`, and nothing beside that may change."""

    root: Path
    seeds: Path

    @property
    def folder(self) -> Path:
        return self.root / "in"

    @property
    def outside(self) -> Path:
        return self.root / "outside"

    @property
    def canary(self) -> Path:
        """The file that every attack on code would create."""
        return self.outside / "CANARY"


NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 255, 256, 1000, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**31)),
    *(-(2**63), 10**9, 3 * 10**9, 10**15, 10**18, 10**30, 0.0, -0.0, 0.5, -1.5, 1e-320, 1e-9, 1e17, 1e308, -1e308),
    *(Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e400"), Raw("9" * 80), Raw("9" * 5000), Raw("-0")),
)
TEXTS = (
    *("", " ", "a", "null", "true", "0", "-1", "1e400", "nan", "inf", "x" * 300, "x" * 20_000, "9" * 5000, "é√漢字🦁"),
    *("\ud800", "a\0b", "\0", "\x1b]0;title\x07", "\x1b[2J", "a\nb", "a\tb", "\r", "\u202eabc", "$\\frac$", "%s%n{0}"),
    *("{", "}", "[", "]]", "'", '"', "\\", "${", "${a}", "${up:", "${up:a}", "${or:a,b}", "a=b", "a,b", "-", "--", "~"),
    *(".", "..", "/", "../..", "a/b", "=1+1", "=9**9**9", "=__import__('os')", "<script>", "*", "?", "@", "@@", "!!"),
    *("LlamaForCausalLM", "llama", "gpt2", "bert", "mamba2", "deepseek_v3", "silu", "yarn", "fp8", "auto", "cpu"),
)


def make_deep(rng: Random, depth: int | None = None) -> Raw:
    """Nest lists or mappings: far deeper than any file needs, or about as deep as is still allowed."""
    depth = depth or rng.choice([40, 70, 1000, 100_000])
    return Raw("[" * depth + "]" * depth) if rng.random() < 0.5 else Raw('{"a":' * depth + "1" + "}" * depth)


def list_paths(place: Place) -> list[str]:
    """Paths that lead out of a folder, round in circles, or nowhere."""
    secret, levels = place.outside / "secret.json", ("../outside/secret.json", "../../outside/secret.json")
    return [
        *(str(secret), str(secret.with_suffix("")), *levels, "../outside/folder", str(place.outside / "folder")),
        *(
            "missing",
            "missing/x.json",
            "loop",
            ".",
            "..",
            "",
            "a\0b",
            "x" * 300,
            "/dev/null",
            "folder",
            "~",
            "~nobody/x",
        ),
        *(f"file://{secret}", "./config.json", "config.json/x", "..\\outside\\secret.json", f"./{secret}"),
    ]


def list_attacks(place: Place) -> list[Any]:
    """Values that name code, or that ask for the surroundings. Each of the first would create the canary."""
    touch = f"touch {place.canary}"
    file = {"_target_": "pathlib.Path", "_args_": [str(place.canary)]}
    write = {"_target_": "zoo.disk.write_text", "file": file, "text": "x"}  # what Hydra's own list lets through
    run = {"_target_": "os.system", "command": touch}
    return [
        *(write, run, {"_target_": "subprocess.Popen", "args": touch, "shell": True}),
        {"_target_": "builtins.eval", "_args_": [f"open({str(place.canary)!r}, 'w')"]},
        {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(place.canary)]}},
        *({"hydra": {"callbacks": {"e": each}}} for each in (write, run)),
        *({"callbacks": {"e": each}} for each in (write, run)),
        {"launcher": {"kind": "slurm", "lines": [touch]}, "nproc": 1},
        {"kind": "slurm", "lines": [touch], "submit": True},
        ["/evil@_global_.hydra.callbacks.e", "_self_"],
        ["/evil@_global_", "_self_"],
        ["evil", "override hydra/launcher: evil"],
        Raw(f'!!python/object/apply:os.system ["{touch}"]'),
        Raw(f'!!python/object/apply:subprocess.Popen [["touch", "{place.canary}"]]'),
        Raw("!!python/name:os.system"),
        Raw("&a [*a, *a]"),
        f"$({touch})",
        f"; {touch}",
        f"`{touch}`",
        f"{{{{ cycler.__init__.__globals__.os.popen('{touch}').read() }}}}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for i in range(10**9) %}x{% endfor %}",
        f"=__import__('os').system('{touch}')",
        f"${{oc.env:{VARIABLE}}}",
        f"${{oc.env:{VARIABLE},x}}",
        f"${{oc.decode:'!!python/object/apply:os.system [\"{touch}\"]'}}",
        "${hydra:runtime.cwd}",
        "${oc.create:${oc.env:HOME}}",
    ]


MADE = 4 << 20
"""Characters, about, that repeating a value may make: mutations of mutations would take minutes to write."""


def repeat(items: list[Any], times: int) -> list[Any]:
    """Repeat the items of a list so often, or as often as there is a budget for."""
    return items * min(times, max(2, MADE // max(_measure(items), 1)))


def _measure(tree: Any) -> int:
    """Measure about how many characters a tree is written with."""
    if isinstance(tree, dict):
        return sum(_measure(key) + _measure(value) for key, value in tree.items())
    if isinstance(tree, list | tuple):
        return sum(map(_measure, tree))
    return 4 + (len(tree.text) if isinstance(tree, Raw) else len(tree) if isinstance(tree, str) else 8)


EVIL = "_target_: zoo.disk.write_text\nfile: {{_target_: pathlib.Path, _args_: [{canary}]}}\ntext: x\n"
"""The config that `/evil@_global_…` would compose."""


def choose_odd(rng: Random, place: Place, like: Any = None) -> Any:
    """Choose an odd value, often of the kind that stands there."""
    roll = rng.random()
    if isinstance(like, bool | int | float) and roll < 0.5:
        return choose_number(rng, like)
    if isinstance(like, str) and roll < 0.3:
        return rng.choice([like.upper(), like[:-1], like + rng.choice(TEXTS), rng.choice(TEXTS), [like], {like: like}])
    return rng.choice(
        [
            *(lambda: rng.choice(NUMBERS), lambda: rng.choice(TEXTS), lambda: rng.choice(TEXTS)),
            *(lambda: rng.choice(list_paths(place)), lambda: rng.choice(list_attacks(place))),
            *(lambda: None, lambda: rng.choice([True, False, [], {}, [[]], [None], {"": {}}, [["a"]], [0] * 50])),
            *(
                lambda: make_deep(rng),
                lambda: repeat([like], rng.choice([0, 2, 1000])),
                lambda: {"a": like},
                lambda: str(like),
            ),
        ]
    )()


def choose_number(rng: Random, like: Any) -> Any:
    """Choose a number near that which stands there, or an odd one."""
    if isinstance(like, float):
        return rng.choice([-like, like * 1e6, int(like), *NUMBERS])
    return rng.choice([like + 1, like - 1, -like, like * 2, like // 2, like * 1000, float(like), str(like), *NUMBERS])
