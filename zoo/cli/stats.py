"""`zoo stats`: price models from their Specs alone: one, several in one table, or the points of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli.common import ConfigPart, Overrides, Target, compose_target, print_note, show_config
from zoo.cli.options import flag, option, options
from zoo.cli.setup import SetupOptions
from zoo.cli.showing import OutputOptions, Plot, Shown, split_words
from zoo.errors import ConfigError, refuse
from zoo.report.glance import list_first_figures

if TYPE_CHECKING:
    from zoo.costs.setup import Setup


@options("Training a part of the model")
class TrainedOptions:
    """Options for the weights that a run trains and the adapters that it adds, as in a training config."""

    lora: str | None = option("Low-rank adapters, as `zoo train lora=…`: '{rank: 8, on: [attention]}'.")
    freeze: list[str] | None = option("Name pattern of weights to freeze. May be given several times.")
    train: list[str] | None = option("Name pattern of weights to train. May be given several times.")

    def tune(self, setup: Setup) -> Setup:
        """Return a set-up in which only the weights that these options name train. Raises ConfigError for a faulty
        value of `lora`."""
        from zoo.api import tune_setup

        return tune_setup(setup, self._read_lora(), self.freeze or (), self.train or ())

    def _read_lora(self) -> Any:
        if self.lora is None:
            return None
        from zoo.compose.overrides import parse_overrides, refuse_sweeps

        faults: list[str] = []
        found = refuse_sweeps(parse_overrides([f"lora={self.lora}"], faults), faults)
        refuse(faults)
        return found[0].value()


def run(
    target: Target,
    overrides: Overrides = None,
    multirun: bool = flag("Print one row for each combination of key=a,b,c.", "--multirun", "-m"),
    columns: str | None = option(
        "Columns of a sweep's table: params,flops,kv or dotted paths of --json. [default: params, active, train/token, "
        "KV/token, cache, weights]"
    ),
    plot: Plot = None,
    explain: bool = flag("Show the formula and the source of each cost."),
    verify: bool = flag("Compare the computed costs with the built model."),
    kernels: bool = flag("Show which attention kernels can run on --gpu (or on a CPU), and why others cannot."),
    cfg: ConfigPart | None = option("Print the YAML instead: composed (job), or as a person would write it (plain)."),
    resolve: bool = flag("Print the composed YAML with its interpolations resolved."),
    *,
    trains: TrainedOptions,
    output: OutputOptions,
    setup: SetupOptions,
) -> None:
    """Compute a model's cost without building it: parameters, FLOPs, KV cache and memory.

    Overrides are Hydra's: an axis by name (attention=mqa), a key (n_layers=4), a field (attention.softcap=50). Several
    models make one table; with -m each combination of swept values (attention=mha,gqa,mqa) is a row.
    """
    targets, overrides = split_words([target, *(overrides or [])])
    shown, setup = output.shown, trains.tune(setup)
    if verify and setup.tunes:
        raise ConfigError("verify: builds no adapters, and trains all weights (leave out --lora, --freeze and --train)")
    if setup.train_tokens is not None and setup.gpu is None and not explain:
        raise ConfigError("tokens: are for the time to train on a GPU (--gpu h100, say)")
    if multirun:
        if cfg or resolve or explain or verify or kernels:
            found = "--cfg, --resolve, --explain, --verify or --kernels"
            raise ConfigError(f"multirun: takes no {found} (name one point without -m)")
        from zoo.cli.sweeping import sweep

        return sweep(targets, overrides, setup, columns, shown, plot)
    if columns is not None:
        raise ConfigError("columns: only apply to a sweep's table (add -m)")
    if cfg or resolve:
        if len(targets) > 1:
            raise ConfigError(f"cfg: shows one model, {len(targets)} were named (name one)")
        if cfg == "plain" and resolve:
            raise ConfigError("resolve: has no effect on the plain form, which has no interpolations (leave it out)")
        return show_config(compose_target(targets[0], overrides), resolve, cfg)
    if kernels:
        if explain or verify or plot is not None or shown in (Shown.csv, Shown.md):
            raise ConfigError("kernels: are printed as text or with --json (leave out other output options)")
        return _kernels(targets, overrides, setup, shown)
    _price(targets, overrides, setup, shown, plot, explain=explain, verify=verify)


def _price(
    targets: list[str],
    overrides: list[str],
    setup: Setup,
    shown: Shown,
    plot: Path | None,
    *,
    explain: bool,
    verify: bool,
) -> None:
    from zoo import costs
    from zoo.api import add_stored, tune_as_trained
    from zoo.cli import showing

    if plot is not None:
        from zoo.report.price_plot import check_picture

        check_picture(plot, len(targets))
    specs = showing.load_specs(targets, overrides)
    setups = [tune_as_trained(target, setup) for target in targets]
    if overrides or verify:  # overrides may change the weights that were trained, and --verify trains all
        for target in (target for target, own in zip(targets, setups, strict=True) if own is not setup):
            cure = "without overrides and --verify it is priced as it was trained"
            print_note(f"{target}: a part of it was trained, and it is priced as one that trains as a whole ({cure})")
        setups = [setup for _ in targets]
    priced = [
        add_stored(target, overrides, costs.price(spec, own))
        for target, spec, own in zip(targets, specs, setups, strict=True)
    ]
    if explain or verify:
        from zoo.cli.proving import prove

        return prove(targets, specs, priced, setups, shown, explain=explain, verify=verify)
    first = []
    if len(specs) == 1 and shown in (Shown.text, Shown.md):
        first = list_first_figures(specs[0], setups[0], priced[0])
    showing.print_prices([" ".join([target, *overrides]) for target in targets], targets, priced, shown, first)
    if shown is Shown.text and not overrides:
        showing.compare_headers(targets)
    if plot is not None:
        from zoo.report.price_plot import draw_models

        draw_models(dict(zip(showing.shorten_labels(targets), specs, strict=True)), setup, plot)


def _kernels(targets: list[str], overrides: list[str], setup: Setup, shown: Shown) -> None:
    """Print the attention kernels of each model; as JSON, together with its figures."""
    from zoo import costs
    from zoo.cli import showing
    from zoo.costs.kernels import kernels
    from zoo.report.kernel_table import format_kernels

    specs = showing.load_specs(targets, overrides)
    found = [kernels(spec, setup) for spec in specs]
    if shown is Shown.json:
        priced = [{**costs.price(spec, setup), "kernels": each} for spec, each in zip(specs, found, strict=True)]
        return showing.print_prices(targets, targets, priced, shown)
    titles = [" ".join([target, *overrides]) for target in showing.shorten_labels(targets)]
    print("\n\n".join(format_kernels(each, title) for title, each in zip(titles, found, strict=True)))
