"""Complete a word of the command line: packaged names, groups, options, dotted keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from omegaconf import DictConfig, OmegaConf

from zoo.compose.composing import TRAINING, Composed, Composition
from zoo.compose.fault_lines import list_children
from zoo.compose.hydra_engine import Listed, open_repository
from zoo.compose.targets import Composer, list_packaged
from zoo.errors import ConfigError
from zoo.grammar import AXES, DIMS


def complete_target(word: str) -> list[str]:
    """List the packaged models that begin with `word`. Empty for a path, which the shell completes."""
    return [] if "/" in word else [name for name in list_packaged() if name.startswith(word)]


def complete_overrides(target: str | None, typed: Sequence[str], word: str) -> list[str]:
    """List the overrides that begin with `word`: for a model, or for training if `target` is None.

    The overrides in `typed` are applied first, except faulty ones. If the only completion ends in `.`, the keys below
    it are returned instead; if it ends in `=`, its values are returned too. The shell would otherwise append a space.
    """
    sign = word[: len(word) - len(word.lstrip("+~"))]
    try:
        config = _Completer(target, typed)
    except ConfigError:
        return []
    word = word.removeprefix(sign)
    found = config.answers(word)
    while len(found) == 1 and found[0].endswith((".", "=")) and (more := config.answers(found[0])) and more != found:
        found = [*found, *more] if found[0].endswith("=") else more
    return [sign + each for each in found]


class _Completer:
    """A composed config, and its config groups by the keys that users type."""

    def __init__(self, target: str | None, typed: Sequence[str]) -> None:
        self.root = "model" if target is None else ""
        self.repo, self.composed = _compose(target, typed)
        self.groups = self._groups()

    def _groups(self) -> dict[str, str]:
        """Map each key that chooses a file to its config group. `attention`, and in a training config also
        `model.attention`, maps to the group `attention`."""
        groups = {axis: axis for axis in AXES}
        for place in self.composed.choices:
            group, _, package = place.partition("@")
            if group != "model" or self.root:
                groups |= {key: group for key in (group, package) if key and not key.startswith(("hydra", "_"))}
        return groups

    def answers(self, word: str) -> list[str]:
        key, equals, value = word.partition("=")
        if equals:
            before, comma, last = value.rpartition(",")
            return sorted(f"{key}={before}{comma}{v}" for v in self._values(key) if v.startswith(last))
        parent, _, name = word.rpartition(".")
        found = {f"{group}=" for group in self.groups if group.startswith(word) and group.rpartition(".")[0] == parent}
        if parent == self.root:
            found |= {f"{parent}.{dim}=".lstrip(".") for dim in DIMS if dim.startswith(name)}
        node = OmegaConf.select(self.composed.cfg, parent) if parent else self.composed.cfg
        for child, below in list_children(node) if isinstance(node, DictConfig) else ():
            if child.startswith(name) and (parent or child != "hydra"):
                found.add(f"{parent}.{child}".lstrip(".") + ("=" if below is None else "."))
        return sorted(found)

    def _values(self, key: str) -> Iterable[str]:
        """List the options of a group, true and false for a boolean, or the present value of any other key."""
        if key in self.groups:
            return self.repo.get_group_options(self.groups[key])
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(self.composed.cfg, parent) if parent else self.composed.cfg
        if not isinstance(node, DictConfig) or name not in node or OmegaConf.is_interpolation(node, name):
            return []
        value = node[name]
        return ["true", "false"] if isinstance(value, bool) else [] if OmegaConf.is_config(value) else [str(value)]


def _compose(target: str | None, typed: Sequence[str]) -> tuple[Listed, Composed]:
    if target is None:
        composer = Composition(open_repository(), TRAINING, "config", root="model")
        return composer.repo, composer.compose(typed)
    composer = Composer(target)
    return composer.repo, composer.compose(list(typed))
