"""Represent a stored model: a Spec and tensors that are read one by one, from files of any format or a built model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from zoo.errors import CheckpointError
from zoo.lazy import Tensor, nn, torch
from zoo.spec import Buffer, table, tensors

if TYPE_CHECKING:
    from zoo.checkpoint.hf.opening import HFSource
    from zoo.model.encoder_decoder import EncoderDecoder
    from zoo.model.tower import Tower

    WholeSpec = Tower | EncoderDecoder  # Spec of a whole model


@dataclass(frozen=True)
class PackedTensor:
    """A tensor that is stored quantised: the `bytes` of its stored tensors, `read` to read these by role, and `decode`
    to compute the tensor from them in a dtype. If several tensors are stored as one, the first counts all bytes, the
    others 0."""

    bytes: int
    read: Callable[[], Mapping[str, Tensor]]
    decode: Callable[[Mapping[str, Tensor], torch.dtype], Tensor]


ReadSlices = Callable[[tuple[slice, ...]], "Tensor"]
"""Reads a part of a stored tensor, given by a slice with a start and a stop for each dimension."""


@dataclass(frozen=True)
class StoredTensors(Mapping[str, "Tensor"]):
    """Tensors by name, read lazily. `forms` has a meta tensor of the same shape and dtype under each name.
    `find_packed` finds how a quantised tensor is stored; None for any other. `find_slices` finds how a part of a tensor
    is read; None for a tensor that is computed when it is read."""

    forms: Mapping[str, Tensor]
    read: Callable[[str], Tensor]
    find_packed: Callable[[str], PackedTensor | None] = lambda name: None
    find_slices: Callable[[str], ReadSlices | None] = lambda name: None

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> StoredTensors:
        """Wrap tensors that are in memory."""
        return cls({name: each.to("meta") for name, each in tensors.items()}, tensors.__getitem__)

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.forms)

    def __len__(self) -> int:
        return len(self.forms)

    def cast(self, dtypes: Mapping[str, torch.dtype]) -> StoredTensors:
        """Convert tensors to their `dtypes` as they are read; the others keep their own."""
        forms = {name: form.to(dtypes.get(name, form.dtype)) for name, form in self.forms.items()}

        def find_slices(name: str) -> ReadSlices | None:
            read = self.find_slices(name)
            return None if read is None else lambda at: read(at).to(forms[name].dtype)

        return StoredTensors(forms, lambda name: self.read(name).to(forms[name].dtype), find_slices=find_slices)

    def under(self, others: StoredTensors) -> StoredTensors:
        """Lay other tensors over these: a name that both have is read from the others."""

        def choose(name: str) -> StoredTensors:
            return others if name in others else self

        forms = {**self.forms, **others.forms}
        return StoredTensors(forms, lambda name: choose(name)[name], find_slices=lambda n: choose(n).find_slices(n))


def find_nonfinite(tensor: Tensor) -> str | None:
    """Say in a few words how many values are not finite; None if all are."""
    if not tensor.is_floating_point() or not tensor.numel():
        return None
    values = tensor if tensor.itemsize > 1 else tensor.float()  # aminmax does not know float8
    if torch.stack(values.aminmax()).isfinite().all():
        return None  # the extremes of a tensor with a NaN are NaN
    return f"is not finite, found {int((~values.isfinite()).sum()):,} of its {tensor.numel():,} values"


def refuse_nonfinite(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor. Raises CheckpointError if a value is not finite."""
    if what := find_nonfinite(tensor):
        raise CheckpointError(f"{name}: {what} (an earlier checkpoint, or another --dtype)")
    return tensor


@dataclass(frozen=True)
class StoredModel:
    """A model by its Spec and its tensors, under Zoo's names. `source` is the Hugging Face folder that it came from."""

    spec: WholeSpec
    tensors: StoredTensors
    source: HFSource | None = None

    @classmethod
    def of(cls, model: Any) -> StoredModel:
        """Wrap a built model. Raises CheckpointError for a model with adapters, which can only be merged from its
        checkpoint, and for one that holds weights in their stored form."""
        from zoo.run.held_weights import list_held_weights

        if getattr(model, "adapters", None) is not None:
            raise CheckpointError(
                "model: has adapters beside its weights (zoo.load of a checkpoint of the run merges them)"
            )
        if next(list_held_weights(model), None) is not None:
            raise CheckpointError("model: holds weights as they are stored (zoo.load of its base alone has them whole)")
        held = model.state_dict()
        forms = {name: torch.empty_like(each, device="meta") for name, each in held.items()}
        return cls(model.spec, StoredTensors(forms, held.__getitem__), getattr(model, "source", None)).served

    def list_parameters(self) -> list[str]:
        """List the names of the tensors that are parameters, not buffers."""
        return [name for name, part, _ in tensors(self.spec, self.spec.d_model) if not isinstance(part, Buffer)]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first parameter."""
        return self.tensors.forms[self.list_parameters()[0]].dtype

    @property
    def served(self) -> StoredModel:
        """The model without the parts that only training runs (`Topology.served`)."""
        spec: Any = self.spec.served
        if spec is self.spec:
            return self
        kept = {name: self.tensors.forms[name] for name in table(spec, spec.d_model)}
        return replace(self, spec=spec, tensors=replace(self.tensors, forms=kept))

    def cast(self, dtype: torch.dtype | None) -> StoredModel:
        """Convert parameters to `dtype` as they are read; None leaves them. Buffers keep their dtypes."""
        if dtype is None:
            return self
        return replace(self, tensors=self.tensors.cast(dict.fromkeys(self.list_parameters(), dtype)))

    def refuse_nonfinite(self) -> StoredModel:
        """Wrap the model so that reading a tensor with a value that is not finite raises CheckpointError."""
        read = self.tensors.read
        return replace(self, tensors=replace(self.tensors, read=lambda name: refuse_nonfinite(name, read(name))))

    def build(self, device: torch.device) -> nn.Module:
        """Build the model on a device, in eval mode."""
        from zoo.run.builder import build

        model: Any = build(self.spec, device="meta")
        for name, tensor in self.tensors.items():
            place_tensor(model, name, tensor.to(device))
        if self.source is not None:
            model.source = self.source
        return model.eval()


def place_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter or buffer of a model by a tensor. A parameter keeps its `requires_grad`."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
    else:
        before = module._parameters[leaf]
        trains = before is None or before.requires_grad
        module._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=trains)
