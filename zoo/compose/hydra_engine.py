"""Drive Hydra's engine. All uses of names private to Hydra 1.3 are in this file.

`tests/test_private_names.py` reports each private name that Hydra has dropped, and each use of a private name in
another file of zoo.

There are two ways to start Hydra. `open_repository` opens only the groups and files of conf/, without the `hydra` node
and without a search for plugins; `zoo stats` composes with it in about 20 ms. `open_session` starts all of Hydra, for
runs, sweeps and launchers.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import __version__, version
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.structured_config_source import StructuredConfigSource
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.conf import ConfigSourceInfo
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, OverrideType, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobRuntime
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from zoo.compose.gate import STATED, check_body, check_merged
from zoo.compose.shorthand import expand_shorthand, find_choices
from zoo.errors import ConfigError
from zoo.paths import conf_dir
from zoo.untrusted.stated_paths import find_inside
from zoo.untrusted.yaml_file import read_yaml_text

METHODS: dict[str, type] = {
    "_compose_config_from_defaults_list": ConfigLoaderImpl,
    "_apply_overrides_to_config": ConfigLoaderImpl,
    "_return_value": JobReturn,
}
"""The private attributes of Hydra's classes that the functions below use."""

PRIMARY = "_zoo_"
"""Name prefix of primary configs."""

TRUSTED = "trusted"
"""Provider name, in Hydra's records, of a config from a trusted file (`--trust`)."""

PACKAGED = "main"
"""Provider name, in Hydra's records, of the files of conf/."""

INSTALLED = (PACKAGED, "hydra")
"""Provider names of files that do not change while a process runs: those of conf/, and Hydra's own."""

_numbers = itertools.count()
_installed: dict[str, Any] = {}
"""The parsed files of INSTALLED providers, by config path."""


def merge_defaults(defaults: DefaultsList, repo: CachingConfigRepository, label: str) -> DictConfig:
    """Merge the configs of a defaults list, first to last. `label` is the primary config's file in messages. Raises
    ConfigError if an untrusted file names code (`zoo.compose.gate`)."""
    for default in defaults.defaults:
        path = default.config_path or ""
        loaded = repo.load_config(path)
        if loaded is not None and loaded.provider == STATED:
            own = label if path.startswith(PRIMARY) else f"{path}.yaml"
            check_merged(loaded.config, default.package or "", own)
    loader = ConfigLoaderImpl.__new__(ConfigLoaderImpl)  # merging needs none of its state
    return loader._compose_config_from_defaults_list(defaults.defaults, repo)


def rename_primary(found: DefaultsList, name: str, new: str) -> DefaultsList:
    """Return a copy of a defaults list with another name for the primary config."""
    defaults = [
        dataclasses.replace(each, config_path=new) if each.config_path == name else each for each in found.defaults
    ]
    return dataclasses.replace(found, defaults=defaults)


def get_failure(job_return: JobReturn) -> BaseException:
    """Return the exception of a failed job. Hydra's public `return_value` would raise the exception."""
    return job_return._return_value


def apply_override(override: Override, cfg: DictConfig) -> None:
    """Set, add or delete one value in `cfg`. Raises HydraException or OmegaConfBaseException."""
    ConfigLoaderImpl._apply_overrides_to_config([override], cfg)


def format_value(override: Override, value: object) -> str:
    """Format an override's value, or a part of it, in Hydra's syntax."""
    return dataclasses.replace(override, _value=value).get_value_element_as_str()


class UserFolder(FileConfigSource):
    """A user's folder as a source of configs. Its files may use the shorthand (`zoo.compose.shorthand`), and choose
    options of the packaged groups and of the folder's own groups. Each file passes the check for code, unless the
    folder is trusted."""

    @staticmethod
    def scheme() -> str:
        return "zoo"

    def load_config(self, config_path: str) -> Any:
        name = config_path if config_path.endswith(".yaml") else f"{config_path}.yaml"
        file = find_inside(Path(self.path), name, f"{self.path}: defaults")
        if file.is_file():  # otherwise Hydra reports the missing file
            read_yaml_text(file)
        result = super().load_config(config_path)
        body: Any = OmegaConf.to_container(result.config, resolve=False)
        if isinstance(body, dict) and (chosen := find_choices(body, self.offers)):
            body = expand_shorthand(body, chosen)
            result.config = OmegaConf.create(body)
        if self.provider == STATED and isinstance(body, dict):
            check_body(body, str(file))
        return result

    def offers(self, group: str) -> bool:
        """Whether a group exists and has options."""
        return any(any((Path(folder) / group).glob("*.yaml")) for folder in (conf_dir(), self.path))


def open_repository(*folders: Path) -> Listed:
    """Open a repository of conf/ and the user's folders. Packaged files take precedence over the user's."""
    version.setbase("1.3")
    registry = SourcesRegistry.instance()
    for source in (FileConfigSource, StructuredConfigSource, UserFolder):
        registry.register(source)
    path = ConfigSearchPathImpl()
    path.append(PACKAGED, f"file://{conf_dir()}")
    for folder in folders:
        path.append(STATED, f"zoo://{folder}")
    path.append("schema", "structured://")
    return Listed(ConfigRepository(path))


class Listed(CachingConfigRepository):
    """A repository that reads each file once and sees configs that are stored later. Hydra's own class does not see
    later configs, because it deep-copies its sources."""

    def __init__(self, delegate: ConfigRepository) -> None:
        for source in delegate.get_sources():
            # In a launcher's worker the source was unpickled with a copy of the store. The test is for the scheme, not
            # the class, because Hydra's search for plugins imports the class a second time.
            if source.scheme() == "structured":
                source.store = ConfigStore.instance()  # type: ignore[attr-defined]
        self.delegate, self.cache = delegate, {}

    def load_config(self, config_path: str) -> Any:
        """Load a config. An installed file is parsed once per process. Each repository has its own copy, because Hydra
        merges into loaded configs."""
        if (key := f"config_path={config_path}") not in self.cache and config_path in _installed:
            self.cache[key] = copy.deepcopy(_installed[config_path])
        found = super().load_config(config_path)
        if found is not None and found.provider in INSTALLED and config_path not in _installed:
            _installed[config_path] = copy.deepcopy(found)
        return found

    def is_packaged(self) -> bool:
        """Whether all is packaged: no user's folder, and no user's config loaded, except primary configs."""
        loaded = [each for key, each in self.cache.items() if not key.startswith(f"config_path={PRIMARY}")]
        return not any(each and each.provider in (STATED, TRUSTED) for each in (*self.get_sources(), *loaded))

    def offers(self, group: str) -> bool:
        """Whether a group exists and has options."""
        packaged = any((conf_dir() / group).glob("*.yaml"))  # listing all options takes 5 ms
        return self.group_exists(group) and (packaged or bool(self.get_group_options(group)))


@contextmanager
def open_session(
    *folders: Path, trusted: Sequence[Path] = (), loader: type[ConfigLoaderImpl] = ConfigLoaderImpl
) -> Iterator[Hydra]:
    """Open Hydra itself, with plugins and a config loader. Only one session can be open in a process, because Hydra
    keeps it in a global. Files of the `trusted` folders skip the check for code (`zoo.compose.gate`)."""
    version.setbase("1.3")
    path = create_config_search_path(f"file://{conf_dir()}")
    SourcesRegistry.instance().register(UserFolder)
    for folder in (*trusted, *(each for each in folders if each not in trusted)):
        anchor = SearchPathQuery(provider="schema", path=None)  # before the schema source, which Hydra requires last
        path.prepend(provider=TRUSTED if folder in trusted else STATED, path=f"zoo://{folder}", anchor=anchor)
    before, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        hydra = Hydra("train", config_loader=loader(path))
        GlobalHydra.instance().initialize(hydra)
        yield hydra
    finally:  # restore the state of a program that itself uses Hydra
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = before, config


def launch_jobs(
    hydra: Hydra, config_name: str, task: TaskFunction, overrides: list[str], jobs: Sequence[Sequence[str]]
) -> None:
    """Run jobs, each given by its overrides, with the config's launcher, in batches of at most
    `hydra.sweeper.max_batch_size`. `Hydra.multirun` only runs the jobs of a sweeper; Hydra's basic sweeper makes all
    combinations, while Zoo's list leaves out equal and finished jobs."""
    cfg = hydra.compose_config(config_name, overrides, run_mode=RunMode.MULTIRUN, with_log_configuration=True)
    callbacks = Callbacks(cfg)
    callbacks.on_multirun_start(config=cfg, config_name=config_name)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=cfg)
    # it logs every job's overrides, lines wider than a screen; who launches says what runs
    logging.getLogger(type(launcher).__module__).setLevel(logging.WARNING)
    OmegaConf.save(cfg, Path(cfg.hydra.sweep.dir) / "multirun.yaml")
    size = cfg.hydra.sweeper.max_batch_size or len(jobs)
    for first in range(0, len(jobs), size):
        launcher.launch([list(each) for each in jobs[first : first + size]], initial_job_idx=first)
    callbacks.on_multirun_end(config=cfg, config_name=config_name)


def fill_hydra_node(
    cfg: DictConfig,
    overrides: Sequence[Override],
    choices: Mapping[str, str | None],
    repo: CachingConfigRepository,
    config_name: str | None,
) -> None:
    """Fill a composed config's `hydra` node as Hydra's own loader does: overrides, choices, versions, sources and the
    job's name. Raises ConfigError for an unset environment variable in `hydra.job.env_copy`."""
    node, job = cfg.hydra, cfg.hydra.job
    OmegaConf.set_readonly(node, False)
    task = [each for each in overrides if not each.is_hydra_override()]
    if unset := [key for key in job.env_copy if key not in os.environ]:
        raise ConfigError(*(f"hydra.job.env_copy: the environment has no {key} (set it)" for key in unset))
    with open_dict(node):
        node.overrides.hydra = [each.input_line for each in overrides if each.is_hydra_override()]
        node.overrides.task = [each.input_line for each in task]
        node.runtime.choices.update(choices)
        job.env_set.update({key: os.environ[key] for key in job.env_copy})
    node.runtime.version, node.runtime.version_base = __version__, version.getbase()
    node.runtime.cwd = os.getcwd()
    node.runtime.config_sources = [
        ConfigSourceInfo(path=each.path, schema=each.scheme(), provider=each.provider) for each in repo.get_sources()
    ]
    if "name" not in job:
        job.name = JobRuntime().get("name")
    style = job.config.override_dirname
    lines = sorted(each.input_line or "" for each in task if each.key_or_group not in style.exclude_keys)
    job.override_dirname = style.item_sep.join(lines).replace("=", style.kv_sep)
    job.config_name = config_name


def name_primary() -> str:
    """Return a new name for a primary config. Under its own name, a `config.yaml` with `defaults: [/config]` would
    include itself."""
    return f"{PRIMARY}{next(_numbers)}"


@contextmanager
def store_primary(body: Any, name: str | None = None, *, trusted: bool = False) -> Iterator[str]:
    """Store `body` as a primary config of Hydra during a `with` block. Yield its name, by default a new one."""
    name = name or name_primary()
    store = ConfigStore.instance()
    store.store(name, node=body, provider=TRUSTED if trusted else STATED)
    try:
        yield name
    finally:
        del store.repo[f"{name}.yaml"]


def store_model(name: str, body: dict[str, Any]) -> None:
    """Add a user's model to the options of the group `model`. Launchers send the store to their workers."""
    ConfigStore.instance().store(name, node=OmegaConf.create(body), group="model", provider=STATED)
