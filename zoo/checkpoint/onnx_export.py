"""Write a recorded program as an ONNX file, and run it by onnxruntime."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import CheckpointError, ConfigError
from zoo.lazy import Tensor, torch
from zoo.untrusted.printable import shorten

if TYPE_CHECKING:
    from zoo.run.traced import TracedModel

    Named = Mapping[str, Tensor]

PACKAGES = "onnx", "onnx_ir", "onnxscript", "onnxruntime"

WHOLE = 1_900_000_000
"""Maximum bytes of weights inside the file: protobuf allows 2 GB. Larger weights are written to model.onnx.data."""


def check(dtype: torch.dtype) -> None:
    """Raise ConfigError if a package for ONNX is not installed, or for a dtype other than float32 and float16."""
    try:
        for name in PACKAGES:
            import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"--to onnx: {error.name} is not installed (pip install 'transformer-zoo[onnx]')") from error
    if dtype not in (torch.float32, torch.float16):
        stated = str(dtype).removeprefix("torch.")
        raise ConfigError(f"--dtype: is {stated}, which onnxruntime does not compute in on a CPU (fp32 or fp16)")


def write(traced: TracedModel, program: Any, folder: Path) -> None:
    """Write a recorded program as ONNX. Raises ConfigError, with torch's reason, for an operator that ONNX lacks."""
    from zoo.checkpoint.onnx_operators import TABLE

    how: dict[str, Any] = {"dynamo": True, "custom_translation_table": TABLE, "verbose": False}
    try:
        with _quiet():
            made: Any = torch.onnx.export(program, (), **how)
    except torch.onnx.OnnxExporterError as error:
        reason = next((each for each in str(error).splitlines() if "class" in each), str(error))
        raise ConfigError(f"--to onnx: torch does not translate this model, {shorten(reason, 200)}") from error
    _name(made.model.graph, traced)
    size = sum(each.nbytes for each in traced.state_dict().values())
    with _quiet():
        made.save(folder / f"{traced.name}.onnx", external_data=size > WHOLE)


def _name(graph: Any, traced: TracedModel) -> None:
    """Name the inputs, the outputs and the axes of variable size."""
    for values, names in ((graph.inputs, traced.inputs), (graph.outputs, traced.outputs)):
        for value, name in zip(values, names, strict=True):
            value.name = name
    pairs = traced.name_axes({value.name: value.shape for value in graph.inputs})
    axes = {str(size): name for size, name in reversed(pairs) if not isinstance(size, int)}
    symbol = re.compile("|".join(rf"\b{each}\b" for each in axes))
    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value is not None:
                value.shape[axis] = symbol.sub(lambda match: axes[match[0]], size.value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings during the translation: on optional packages (torchvision), and torch's deprecations."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before)


def open_program(traced: TracedModel, folder: Path) -> Callable[[Named], Named]:
    """Open an ONNX file in onnxruntime, on the CPU, as a function of named inputs. Raises CheckpointError if
    onnxruntime refuses the file or, when the function is called, an input."""
    import onnxruntime

    state: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    refusals = tuple(each for each in vars(state).values() if isinstance(each, type) and issubclass(each, Exception))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3

    def attempt(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except refusals as error:
            raise CheckpointError(f"{file}: onnxruntime refuses it, {shorten(str(error), 300)}") from error

    file, providers = folder / f"{traced.name}.onnx", ["CPUExecutionProvider"]
    session: Any = attempt(lambda: onnxruntime.InferenceSession(file, options, providers=providers))
    names = [each.name for each in session.get_outputs()]

    def call(given: Named) -> Named:
        made = attempt(lambda: session.run(None, {name: each.numpy() for name, each in given.items()}))
        return {name: torch.from_numpy(each) for name, each in zip(names, made, strict=True)}

    return call
