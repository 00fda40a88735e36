"""Find the model that the user named (a packaged model, a file, a checkpoint or a mapping), and read its Spec."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo.compose.composing import Composed, Composition
from zoo.compose.fault_lines import FAULTS, describe_missing_option, shorten_error
from zoo.compose.gate import check_body
from zoo.compose.hydra_engine import Listed, create_defaults_list, open_repository, store_primary
from zoo.compose.overrides import STARTS
from zoo.compose.shorthand import Body, expand_shorthand, find_choices
from zoo.compose.sources import StatedFile, locate_faults, locating
from zoo.errors import CheckpointError, ConfigError, did_you_mean
from zoo.grammar.dialect import is_choice, read_choice
from zoo.grammar.interpolation import list_sizes
from zoo.grammar.keys import BASES, KNOWN
from zoo.model_hub import locate
from zoo.paths import conf_dir, list_conf, read_conf
from zoo.runs import ARCHITECTURE, CHECKPOINTS
from zoo.untrusted.printable import quote, shorten
from zoo.untrusted.yaml_file import describe_yaml_error, read_yaml_text

if TYPE_CHECKING:
    from zoo.model.decoder import Decoder
    from zoo.model.tower import Topology


@dataclasses.dataclass(frozen=True)
class Target:
    """A model that the user named: its name in messages (`label`), its YAML as plain data (`body`), the folder with its
    groups, and its name as an option of the group `model`."""

    label: str
    body: Body
    folder: Path | None = None
    option: str = ""
    notes: tuple[str, ...] = ()
    sources: tuple[StatedFile, ...] = ()
    """The user's files, for file and line in messages. Empty for a packaged model or a mapping."""


def list_packaged() -> list[str]:
    """List the names of the packaged models."""
    return list_conf("model")


def is_file(target: str | Path) -> bool:
    """Whether a target is a file or folder rather than a packaged name: it looks like a path, has a model file's
    suffix, is a folder without a packaged model's name, or is a run's checkpoint (`RUN@400`)."""
    text = os.fspath(target)
    if isinstance(target, Path) or "/" in text or os.sep in text or text.endswith((".yaml", ".yml", ".json", ".gguf")):
        return True
    return (os.path.isdir(text) and text not in list_packaged()) or names_checkpoint(Path(text))


def holds_model(path: Path) -> bool:
    """Whether a folder holds a model: a Hugging Face folder, a checkpoint or a run."""
    return any((path / name).exists() for name in ("config.json", ARCHITECTURE, CHECKPOINTS))


def names_checkpoint(path: Path) -> bool:
    """Whether a path names a checkpoint of a run: `RUN@400`."""
    from zoo.runs import split_choice

    if "@" not in path.name:
        return False
    run, which = split_choice(path)
    return bool(which) and run.is_dir()


def find_target(target: str | Path | Mapping[str, Any]) -> Target:
    """Find the model that a target names. Raises ConfigError for an unknown model, and for a missing or unreadable
    file."""
    if isinstance(target, Mapping):
        return Target("config", _plain(OmegaConf.create(dict(target)), "config"))
    if not is_file(target):
        name = os.fspath(target)
        notes = (f"{name}: the packaged model; the folder here is ./{name}",) if holds_model(Path(name)) else ()
        return Target(name, name_packaged(name), notes=notes)
    given, path, own = Path(target).expanduser(), _locate(target), list_packaged()
    if path.resolve().parent == (conf_dir() / "model").resolve() and path.is_file():
        return Target(str(target), name_packaged(path.stem), option=path.stem)
    named = path.parent.resolve().name if path.name == "config.json" else path.stem if path.is_file() else given.name
    name = re.sub(r"[^\w.-]", "_", named) or "model"
    option = f"{name}-file" if name in own else name
    if path.suffix in (".json", ".gguf") or path.is_dir() or names_checkpoint(path):
        from zoo.grammar import contract_choices

        body, notes = read_published(path)
        file = path / "config.json" if (path / "config.json").is_file() else path
        source = StatedFile(file, str(file))
        return Target(str(target), contract_choices(body), option=option, notes=tuple(notes), sources=(source,))
    body, sources = read_yaml(path), (StatedFile(path, str(target)),)
    with locating(sources):
        check_start(body, path)
    return Target(str(target), body, path.resolve().parent, option, sources=sources)


def _locate(target: str | Path) -> Path:
    """Locate a file or a model of the hub. If the hub does not provide it, the error names a packaged model of the same
    name: `llama3.1-8b` for `meta-llama/Llama-3.1-8B`."""
    try:
        return locate(target)
    except CheckpointError as error:
        name = _squeeze(os.fspath(target).rpartition("/")[2].partition("@")[0])
        twin = next((each for each in list_packaged() if _squeeze(each) == name), None)
        if twin is None:
            raise
        raise CheckpointError(f"{error}; {twin}, without a path, is packaged and needs no hub") from None


def _squeeze(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def check_start(body: Body, path: Path) -> None:
    """Raise ConfigError for a training config, and for a file that names its packaged model otherwise than by
    `defaults: [/model/NAME@_here_]`. The message shows the right form."""
    config = read_conf("config")
    groups = {str(group) for entry in config["defaults"] if isinstance(entry, dict) for group in entry}
    trained = [str(key) for key in body if key in (config.keys() | groups) - KNOWN - {"defaults", "model", "hydra"}]
    if isinstance(body.get("model"), dict) or (trained and ("model" in body or not body.keys() & KNOWN)):
        key = trained[0] if trained else "model"
        raise ConfigError(
            f"{path}: is a training config: it has {key} (zoo train -c {path}; a model is the keys below model)"
        )
    entries = body.get("defaults")
    named = [(key, body[key]) for key in STARTS if key in body]
    for each in entries if isinstance(entries, list) else ():
        word = next((each[key] for key in ("model", "/model") if key in each), None) if isinstance(each, dict) else each
        named.append(("defaults", word))
    for key, word in named:
        name = str(word).removeprefix("/").removeprefix("model/")
        if name in list_packaged() and not (key == "defaults" and (path.parent / f"{word}.yaml").is_file()):
            said = f"{word} is not told where to stand" if key == "defaults" else "no such key of a model"
            raise ConfigError(f"{key}: {said} (defaults: [/model/{name}@_here_] starts from it)")


def read_published(path: Path) -> tuple[Body, list[str]]:
    """Read a config.json, a folder with one, a GGUF file, or a checkpoint or run of Zoo as plain data of a model's
    YAML, with notes on omitted fields. For an adapter in peft's format, read its base model.

    From a run, the composed model is read with unresolved interpolations, so that overrides can change it. Raises
    ConfigError for a missing or broken file.
    """
    from zoo import runs
    from zoo.families import described
    from zoo.grammar import to_body
    from zoo.grammar.saved import read_spec

    if described.is_peft(path):
        return read_published(described.find_peft_base(path))
    folder = runs.find(path) if path.is_dir() or names_checkpoint(path) else path
    if described.is_config(folder):
        made, notes = described.describe_config(folder)
        return dict(made.model), notes
    run = runs.split_choice(path)[0] / "config.yaml"
    if not run.is_file():
        return to_body(read_spec(folder)), []
    if not isinstance(model := read_yaml(run).get("model"), dict):
        raise ConfigError(f"{run}: model: is {quote(model)}, no mapping (the file that zoo train wrote)")
    return model, []


def name_packaged(name: str) -> Body:
    """Make a config that includes a packaged model at the root. Raises ConfigError for an unknown name."""
    if name not in list_packaged():
        if said := describe_unpublished(name):
            raise ConfigError(f"{name}: {said}")
        axis, _, word = name.partition(".")
        key, colon, value = name.partition(":")
        if colon and key.partition(".")[0] in KNOWN:
            raise ConfigError(f"{name}: no packaged model of that name ({key}={value} sets a model's {key})")
        if axis in BASES and is_choice(axis, word):
            raise ConfigError(f"{name}: no packaged model of that name ({axis}={word} chooses the {axis} of a model)")
        beside = f"; the file here is ./{name}.yaml" if Path(f"{name}.yaml").exists() else ""
        hint = did_you_mean(name, list_packaged()) or " (`zoo list` shows them; a file's name ends in .yaml)"
        raise ConfigError(f"{name}: no packaged model of that name{hint}{beside}")
    return {"defaults": [{"model@_here_": name}, "_self_"]}


@functools.cache
def read_unpublished() -> dict[str, dict[str, Any]]:
    """Read the models with unpublished architectures, with their makers and the nearest packaged models."""
    return read_conf("unpublished")


def describe_unpublished(name: str) -> str:
    """Describe a model with an unpublished architecture, with the nearest packaged model. "" for other names."""
    text = re.sub(r"[^a-z0-9.]", "", name.casefold())
    for start, found in read_unpublished().items():
        own = start.replace("-", "")
        if re.match(re.escape(own) + (r"(?!\d)" if own[-1].isdigit() else ""), text):
            near = f"nearest here: {', '.join(found['nearest'])}, {found['why']}"
            return f"{found['maker']} never published its architecture, so nothing of it can be counted ({near})"
    return ""


def read_yaml(path: Path) -> Body:
    """Read a user's YAML file as a mapping. Raises ConfigError if it is missing, unreadable or not a mapping."""
    try:
        text = read_yaml_text(path)
        body = _plain(OmegaConf.load(io.StringIO(text)), str(path))
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such file{did_you_mean(path.name, siblings)}") from None
    except AssertionError:  # from OmegaConf, for a file that holds a text
        raise ConfigError(f"{path}: holds a text, not a mapping of keys to values") from None
    except (OSError, ValueError) as error:  # OmegaConf raises OSError for a file that holds another single value
        raise ConfigError(f"{path}: cannot be read, {shorten(str(error))}") from error
    except yaml.YAMLError as error:  # a key given twice, or a tag that names code
        raise ConfigError(describe_yaml_error(str(path), error)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {shorten_error(error)}") from error
    if [*body.values()] == [None] and isinstance(yaml.safe_load(text), str):  # which OmegaConf reads as a key
        raise ConfigError(f"{path}: holds a text, not a mapping of keys to values")
    return body


def _plain(config: Any, label: str) -> Body:
    body = OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else None
    if not isinstance(body, dict):  # a null or an interpolation is a DictConfig too
        found = "a list" if isinstance(config, ListConfig) else "a value"
        raise ConfigError(f"{label}: holds {found}, not a mapping of keys to values")
    return {str(key): value for key, value in body.items()}


def list_defaults(
    body: Body,
    repo: Listed,
    label: str,
    base: str | None = None,
    *,
    trusted: bool = False,
) -> Body:
    """Move a file's shorthand into its defaults list. Raises ConfigError for unknown options, and for an untrusted file
    that names code."""
    if not trusted:
        check_body(body, label)
    if not isinstance(body.get("defaults", []), list):
        raise ConfigError(f"{label}: defaults: must be a list, found {body['defaults']!r}")
    chosen = find_choices(body, repo.offers)
    if not trusted:
        check_body({"defaults": [{group: option} for group, option in chosen.values()]}, label)
    faults = [
        describe_missing_option(group, option, repo.get_group_options(group), place.partition("@")[2])
        for place, (group, option) in chosen.items()
        if not repo.config_exists(f"{group}/{option}")
    ]
    if faults:
        raise ConfigError(*(f"{label}: {fault}" for fault in faults))
    return expand_shorthand(body, chosen, functools.partial(_list_known, repo=repo, label=label), base)


def _list_known(body: Body, repo: Listed, label: str) -> set[str]:
    with store_primary({"defaults": body["defaults"]}) as name:
        try:
            found = create_defaults_list(repo, name, [], prepend_hydra=False, skip_missing=True)
        except FAULTS as error:
            raise ConfigError(f"{label}: {shorten_error(error, {name: label})}") from error
    return set(found.overrides.known_choices)


def note_sizes(overrides: Iterable[str], cfg: DictConfig) -> list[str]:
    """List a note for each swapped choice whose sizes come from its own file, because the model does not set them. A
    router's sizes already have a note."""
    body: Any = OmegaConf.to_container(cfg, resolve=False)
    notes = []
    for axis, _, word in (text.partition("=") for text in overrides):
        if axis in BASES and axis != "router" and is_choice(axis, word) and isinstance(body.get(axis), dict):
            own = {name: each for name, each in read_choice(BASES[axis], word).items() if type(each) is int}
            sizes = {name: size for name, size in list_sizes(body[axis]).items() if name not in body} | own
            told = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
            notes += [f"{axis}={word}: takes {told}"] if told else []
    return notes


def note_positions(spec: Topology) -> Iterator[str]:
    """Yield a note for each tower with a position scheme inside attention that none of its layers uses."""
    for where, tower in spec.towers().items():
        kinds = {block.attention.positioning.kind for block in tower.blocks.values() if block.attention.positioning}
        if tower.position.inside and kinds == {"none"} != {tower.position.kind}:
            place = f"{where}.position" if where else "position"
            found = f"no layer reads {tower.position.kind}, as each that has positions states none"
            yield f"{place}: {found} ({place}: none would do)"


def compose_model(target: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Composed:
    """Compose the config of one model, with the model's keys at the root."""
    return Composer(target).compose([overrides] if isinstance(overrides, str) else list(overrides))


class Composer:
    """Composer of one model under many sets of overrides. Files are read once, each set of choices is composed once."""

    def __init__(self, target: str | Path | Mapping[str, Any]) -> None:
        self.found = find_target(target)
        self.repo = open_repository(*([self.found.folder] if self.found.folder else []))
        with locating(self.found.sources):
            self.body = list_defaults(self.found.body, self.repo, self.found.label)
        self.composition = Composition(self.repo, self.body, self.found.label)

    def compose(self, overrides: list[str], varied: Collection[str] | None = None) -> Composed:
        """Compose the config, with the model's keys at the root. `varied` is as in `Composition.compose`."""
        with locating(self.found.sources):
            made = self.composition.compose(overrides, varied)
        made.notes += self.found.notes
        made.sources = self.found.sources
        made.inherited = self._list_inherited(made)
        return made

    def _list_inherited(self, made: Composed) -> tuple[str, ...]:
        """List the keys of `about` from the base model that do not describe this model, because the file or an override
        changes it. If an override sets a value, `params` is listed even if the file sets it."""
        body, about = self.found.body, made.cfg.get("about")
        if not isinstance(about, Mapping):  # a fault that the grammar reports, if it is read
            return ()
        stated = body.get("about")
        own = set(map(str, stated if isinstance(stated, Mapping) else ())) - ({"params"} if made.touched else set())
        own |= {key.partition(".")[2] for key in made.touched if key.startswith("about.")}
        starts = [each for each in body.get("defaults") or () if each != "_self_"]
        changes = made.typed or len(starts) > 1 or body.keys() - {"defaults", "about"}
        return tuple(str(key) for key in about if key not in own) if changes else ()


def to_yaml(cfg: DictConfig, *, resolve: bool) -> str:
    """Write the config as YAML. Raises ConfigError for an interpolation that cannot be resolved."""
    from zoo import grammar

    body: Any = OmegaConf.to_container(cfg, resolve=False)
    return OmegaConf.to_yaml(OmegaConf.create(grammar.resolve(body) if resolve else body))


def to_plain_yaml(cfg: DictConfig, left: Collection[str] = ()) -> str:
    """Write a model's config as people do: choices as words, no interpolations, and `about` without the keys in
    `left`."""
    from zoo import grammar

    body: Any = OmegaConf.to_container(cfg, resolve=False)
    if left:
        kept = {key: value for key, value in body.pop("about").items() if key not in left}
        body = {"about": kept, **body} if kept else body
    return yaml.safe_dump(
        grammar.contract(body), sort_keys=False, default_flow_style=None, width=120, allow_unicode=True
    )


def spec_of_composed(composed: Composed) -> Decoder:
    """Read the Spec of a composed config. Raises ConfigError with the faults of overrides and grammar together."""
    from zoo import grammar

    faults, spec = list(composed.faults), None
    try:
        spec = grammar.to_spec(composed.cfg, composed.touched)
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(*locate_faults(dict.fromkeys(faults), composed.sources, composed.typed))
    assert spec is not None
    return spec


def note_idle(composed: Composed, varied: Collection[str], root: str = "") -> list[str]:
    """List the keys that are set for all points of a sweep but that this point's model does not read, a line each. The
    model must have no faults."""
    from zoo import grammar

    swept = [each for each in composed.typed if each.lstrip("+").partition("=")[0].removeprefix("model.") in varied]
    try:
        grammar.to_spec(composed.cfg[root] if root else composed.cfg, [e for e in composed.touched if e not in varied])
    except ConfigError as error:
        return [f"{' '.join(swept)}: {fault.removesuffix(' (leave it out)')}" for fault in error.faults]
    return []
