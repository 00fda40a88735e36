"""What `zoo list` finds among the packaged models by the parts that they have."""

from __future__ import annotations

import random

import pytest

from zoo.cli import run
from zoo.compose import load
from zoo.compose.targets import list_packaged
from zoo.spec import components

pytestmark = pytest.mark.quick


def test_models_are_listed_by_what_they_have(capsys, refused) -> None:
    def names(*args: str) -> set[str]:
        assert run(["list", *args]) == 0
        return {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]}

    some = random.Random(1).sample(list_packaged(), 20)
    experts = {name for name in some if any(row.axis == "router" for _, row, _ in components_of(load(name)))}
    assert names("--with", "moe") & set(some) == experts
    assert "gpt-oss-20b" in names("--with", "moe_clamped") < names("--with", "moe")
    assert names("moe") >= experts
    assert "deepseek-v3.2" in names("--with", "dsa") - names(
        "--with", "mla"
    )  # it begins with DeepSeek-V3, whose it was
    assert names("--with", "moe,mla") == names("--with", "moe") & names("--with", "mla")
    assert names("--params", "1B..2B") & names("--params", "2.1B..") == set()
    assert refused("list", "--with", "moee") == ["with: no packaged model has 'moee' (did you mean 'moe'?)"]
    assert refused("list", "--params", "1B") == ["params: cannot read '1B' (FROM..TO, as 1B..10B or ..500M)"]


def components_of(spec):
    for tower in spec.towers().values():
        yield from components(tower, tower.d_model)
