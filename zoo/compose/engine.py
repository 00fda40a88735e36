# ruff: noqa: TID253
"""Every name of Hydra that zoo uses, several of them private to Hydra 1.3, and the two ways in which we start it.

`repository` is the light one: the groups and files of conf/, without the `hydra` node and without a search for
plugins; `zoo stats` composes with it in some 20 ms. `session` is the whole of it, for runs, sweeps and launchers.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.structured_config_source import StructuredConfigSource
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf, _utils, base
from omegaconf.grammar_parser import parse

from zoo.compose.shorthand import choices, explicit
from zoo.paths import conf_dir

__all__ = [
    "CachingConfigRepository",
    "ChoiceSweep",
    "ConfigLoaderImpl",
    "DefaultsList",
    "Hydra",
    "HydraConfig",
    "HydraException",
    "IntervalSweep",
    "Override",
    "OverrideType",
    "OverridesParser",
    "Quote",
    "QuotedString",
    "RunMode",
    "caching",
    "create_defaults_list",
    "primary",
    "primary_name",
    "repository",
    "session",
    "store_model",
]

_numbers = itertools.count()


_parse_once = functools.lru_cache(4096)(parse)


def remember_parses() -> None:
    """OmegaConf reads `${up:n_heads}` with ANTLR each time that the node is looked at, which is half of what a Spec
    takes; a tree once read is only ever looked at, so each text is read once."""
    base.parse = _utils.parse = _parse_once  # type: ignore[attr-defined, assignment]


class UserFolder(FileConfigSource):
    """A user's folder: its files may use the shorthand, and may choose from the packaged groups and from its own."""

    @staticmethod
    def scheme() -> str:
        return "zoo"

    def load_config(self, config_path: str) -> Any:
        result = super().load_config(config_path)
        body: Any = OmegaConf.to_container(result.config, resolve=False)
        if isinstance(body, dict) and choices(body, self.offers):
            result.config = OmegaConf.create(explicit(body, self.offers))
        return result

    def offers(self, group: str) -> bool:
        """Whether there is a group of that name with options in it."""
        return any(any((Path(folder) / group).glob("*.yaml")) for folder in (conf_dir(), self.path))


def repository(*folders: Path) -> CachingConfigRepository:
    """The groups and files of conf/, then of the user's folders: a packaged file wins over one of the same name."""
    version.setbase("1.3")
    remember_parses()
    registry = SourcesRegistry.instance()
    for source in (FileConfigSource, StructuredConfigSource, UserFolder):
        registry.register(source)
    path = ConfigSearchPathImpl()
    path.append("main", f"file://{conf_dir()}")
    for folder in folders:
        path.append("user", f"zoo://{folder}")
    path.append("schema", "structured://")
    return Listed(ConfigRepository(path))


class Listed(CachingConfigRepository):
    """A repository that looks at each file and each folder once: for one that nothing is stored in later."""

    def __init__(self, delegate: ConfigRepository) -> None:
        self.delegate = delegate  # Hydra's own __init__ copies it
        self.cache = {}
        self.group_exists = functools.cache(delegate.group_exists)
        self.get_group_options = functools.cache(delegate.get_group_options)


def caching(repository: ConfigRepository) -> CachingConfigRepository:
    """A repository that reads each file once. Hydra's works on a deep copy, which would not see what we store later."""
    cache = CachingConfigRepository(repository)
    cache.delegate = repository
    return cache


@contextmanager
def session(*folders: Path) -> Iterator[Hydra]:
    """Hydra itself, with its plugins. One at a time in a process: Hydra keeps it in a global."""
    version.setbase("1.3")
    path = create_config_search_path(f"file://{conf_dir()}")
    SourcesRegistry.instance().register(UserFolder)
    for folder in folders:  # before the schema source, which Hydra wants last
        anchor = SearchPathQuery(provider="schema", path=None)
        path.prepend(provider="user", path=f"zoo://{folder}", anchor=anchor)
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("train", path)
    finally:
        GlobalHydra.instance().clear()


def primary_name() -> str:
    """A name for a primary config.

    One of its own, not the file's: a user's `config.yaml` that says `defaults: [/config]` would include itself.
    """
    return f"_zoo_{next(_numbers)}"


@contextmanager
def primary(body: Any, name: str | None = None) -> Iterator[str]:
    """The name under which Hydra finds `body` as a primary config: a new one unless given."""
    name = name or primary_name()
    store = ConfigStore.instance()
    store.store(name, node=OmegaConf.create(body))
    try:
        yield name
    finally:
        del store.repo[f"{name}.yaml"]


def store_model(name: str, body: Any) -> None:
    """Make a user's file an option of the group `model`; the store travels to a launcher's workers."""
    ConfigStore.instance().store(name, node=OmegaConf.create(body), group="model")
