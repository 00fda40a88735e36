"""The stand-ins of flash-attn have the signatures of the real thing.

flash-attn needs a GPU to be imported, so its sources are read: of an installed distribution, and of what the variable
ZOO_FLASH_SOURCES names: folders of unpacked sources, wheels (.whl) or source archives (.tar.gz), separated as in PATH.
flash-attn's own source archive (`pip download --no-deps --no-binary :all: flash-attn`) and the wheel of flash-attn-4 do
for versions 2 and 4; version 3 is `hopper/flash_attn_interface.py` of a checkout of the repository. A version without a
source is skipped. torch's operator is always compared: its schema is in every build.
"""

import ast
import inspect
import os
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch
from standins import flash_attn_2, flash_attn_3, flash_attn_4, torch_flash

SOURCES = {
    # version: the stand-in, the distribution, and the file in it or in a repository
    "2": (flash_attn_2, "flash-attn", "flash_attn/flash_attn_interface.py"),
    "3": (flash_attn_3, "flash-attn-3", "hopper/flash_attn_interface.py"),
    "4": (flash_attn_4, "flash-attn-4", "flash_attn/cute/interface.py"),
}
FUNCTIONS = ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache")
NEW = {"3": "return_attn_probs=False", "4": "seqlen_k_per_split"}
"""Words by which a file is told from an older one of the same name: flash-attn 2's source archive holds hopper and cute
folders of its own time."""
UNSET = inspect.Parameter.empty


def source(version):
    """The text of the version's interface, or None."""
    _, distribution, path = SOURCES[version]
    texts = [*_installed(distribution, Path(path).name), *_named(path)]
    new = NEW.get(version, "")
    return next((text for text in texts if new in text), None)


def _installed(distribution, name):
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name == name:
            yield file.read_text()


def _named(path):
    """What the variable's folders and archives hold under this path."""
    for place in filter(None, os.environ.get("ZOO_FLASH_SOURCES", "").split(os.pathsep)):
        if place.endswith(".whl"):
            with zipfile.ZipFile(place) as archive:
                yield from (archive.read(name).decode() for name in archive.namelist() if name.endswith(path))
        elif place.endswith(".tar.gz"):
            with tarfile.open(place) as archive:
                members = (member for member in archive.getmembers() if member.name.endswith(path))
                yield from (archive.extractfile(member).read().decode() for member in members)
        else:
            assert Path(place).is_dir(), f"ZOO_FLASH_SOURCES: there is no folder {place}"
            yield from (file.read_text() for file in sorted(Path(place).rglob(path)))


def written(text, function):
    """The parameters of a function in a source, in order: name → default. None where there is no such function."""
    found = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == function]
    if not found:
        return None
    arguments = found[-1].args
    assert not (arguments.posonlyargs or arguments.kwonlyargs or arguments.vararg or arguments.kwarg)
    defaults = [UNSET] * (len(arguments.args) - len(arguments.defaults))
    defaults += [ast.literal_eval(default) for default in arguments.defaults]
    return dict(zip((argument.arg for argument in arguments.args), defaults, strict=True))


def played(function):
    parameters = inspect.signature(function).parameters.values()
    assert all(each.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD for each in parameters)
    return {each.name: each.default for each in parameters}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("version", SOURCES)
def test_a_stand_in_has_the_signature_of_the_real_one(version, function):
    stand_in, distribution, path = SOURCES[version]
    text = source(version)
    if text is None:
        pytest.skip(f"{distribution} is not installed, and ZOO_FLASH_SOURCES names no {path}")
    wanted, found = written(text, function), getattr(stand_in, function, None)
    assert (found is None) == (wanted is None)
    if wanted is not None:
        assert list(played(found).items()) == list(wanted.items())


def test_a_source_is_read_from_folders_and_archives(tmp_path, monkeypatch):
    body = "def flash_attn_func(q, k, window_size=(-1, -1), softcap=0.0):\n    pass\n"
    folder, wheel, archive = tmp_path / "flash_attn", tmp_path / "a.whl", tmp_path / "a.tar.gz"
    folder.mkdir()
    (folder / "flash_attn_interface.py").write_text(body)
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.write(folder / "flash_attn_interface.py", "flash_attn/flash_attn_interface.py")
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, "flash_attn-2/flash_attn")
    for place in (tmp_path, wheel, archive):
        monkeypatch.setenv("ZOO_FLASH_SOURCES", f"{place}{os.pathsep}")
        (text,) = _named(SOURCES["2"][2])
        wanted = {"q": UNSET, "k": UNSET, "window_size": (-1, -1), "softcap": 0.0}
        assert written(text, "flash_attn_func") == wanted
        assert written(text, "flash_attn_varlen_func") is None


# ---------------------------------------------------------------- torch's own operator

NEWER = ("block_table", "num_splits")  # not in torch 2.11


def test_torchs_operator_has_the_stand_ins_schema():
    schema = torch.ops.aten._flash_attention_forward.default._schema
    known = {argument.name for argument in schema.arguments}
    parameters = inspect.signature(torch_flash._flash_attention_forward).parameters.values()
    found = [
        (each.name, each.kind == inspect.Parameter.KEYWORD_ONLY, each.default)
        for each in parameters
        if each.name in known or each.name not in NEWER
    ]
    wanted = [
        (each.name, each.kwarg_only, each.default_value if each.has_default_value() else UNSET)
        for each in schema.arguments
    ]
    assert found == wanted


@pytest.mark.parametrize("packed", [False, True])
def test_torchs_operator_gives_what_its_own_shape_function_says(packed):
    rows = (7,) if packed else (2, 7)
    q, k = torch.randn(*rows, 4, 16).half(), torch.randn(*rows, 2, 16).half()
    ends = torch.tensor([0, 3, 7], dtype=torch.int32) if packed else None
    given = (ends, ends, 4 if packed else 7, 4 if packed else 7, 0.0, True, False)
    found = torch_flash._flash_attention_forward(q, k, k, *given)
    meta = [each.to("meta") if isinstance(each, torch.Tensor) else each for each in (q, k, k, *given)]
    wanted = torch.ops.aten._flash_attention_forward(*meta)
    assert len(found) == len(wanted)
    for a, b in zip(found[:2], wanted[:2], strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
