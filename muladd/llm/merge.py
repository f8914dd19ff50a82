"""A model's files with other weights: adapters merged into them, or weights that were trained.

What is written is a model like the one that was read, a GGUF file or a folder, in which only the
weights that changed are others. Nothing but one weight is held as floats at a time.
"""
from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from muladd.errors import ArgumentError
from muladd.formats import checkpoint, gguf, safetensors
from muladd.formats.quant import KINDS, Kind
from muladd.formats.quant.encode import QUANTIZERS
from muladd.formats.stored import StoredArray
from muladd.ir import dtype as dt
from muladd.llm import hugging_face, sources
from muladd.llm.adapters import Adapter, Pair
from muladd.llm.model import Config, Decoder
from muladd.llm.opening import Opened, opened
from muladd.llm.weights import numbers
from muladd.tensor import Tensor, no_grad

# what becomes of a weight's values, by its name in GGUF files
Changes = Mapping[str, Callable[[np.ndarray], np.ndarray]]

WRITABLE = (*QUANTIZERS, "F32", "F16", "BF16")
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9,
               "Q4_K": 15, "Q6_K": 18, "BF16": 32}  # fmt: skip


def merge(
    model: str | os.PathLike[str], adapter: str | os.PathLike[str],
    output: str | os.PathLike[str], kind: str | None = None, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write the model with an adapter's matrices added to its own; gives what was written.

    `output` is a file's name for a GGUF file (in a folder: model.gguf), or a folder. `kind` is what
    matrices of a GGUF file are quantised to, all of them; without it each keeps its own, but those
    that change have 8 bits at least, as less would round most of a small change away. Raises
    what `llm.load` and `Adapter.load` do, ArgumentError for a kind that is not written, and for an
    output that is there already, unless it is to `overwrite` it.
    """
    check_kind(kind)
    source = opened(model)
    to = target(source.path, output)
    check_free(to, overwrite, "merge")
    if not source.path.is_dir() and to == Path(output) and not to.parent.is_dir():
        raise ArgumentError(f"merge: there is no folder {to.parent}; make it, or give another")
    decoder = Decoder(source.config, source.tensors, 2)
    found = Adapter.load(adapter, decoder)

    def added(values: np.ndarray, pair: Pair) -> np.ndarray:
        with no_grad():
            return (Tensor(values) + pair.delta()).numpy()

    changes = {f"{name}.weight": partial(added, pair=pair) for name, pair in found.pairs.items()}
    return write(source, output, changes, kind)


def write(
    source: Opened, output: str | os.PathLike[str], changes: Changes, kind: str | None = None
) -> Path:
    """Write a model with changed weights, as `merge`, of a kind that was checked."""
    to = target(source.path, output)
    if isinstance(source.file, gguf.GGUF):
        to.parent.mkdir(parents=True, exist_ok=True)
        return _gguf(source.file, source.config, to, changes, kind)
    return _folder(source.file, source.config, to, changes, kind)


def target(model: Path, output: str | os.PathLike[str]) -> Path:
    """The file, or for a folder's model the folder, that is written. Raises ArgumentError where
    that is the model itself."""
    to = Path(output)
    if not model.is_dir() and (to.is_dir() or not to.suffix):
        to = to / "model.gguf"
    elif not model.is_dir() and to.suffix != ".gguf":
        raise ArgumentError(f"merge: {to} is to be a GGUF file; give a name that ends in .gguf, or "
                            "a folder that is there")  # fmt: skip
    if to.exists() and to.samefile(model):
        raise ArgumentError(f"merge: {to} is the model itself; give another name")
    return to


def check_free(to: Path, overwrite: bool, who: str) -> None:
    """Raises ArgumentError for a file, or a folder with files, that nobody said may be lost."""
    if not overwrite and (any(to.iterdir()) if to.is_dir() else to.exists()):
        raise ArgumentError(f"{who}: {to} is there already; give another output, or --overwrite")


def check_kind(kind: str | None) -> None:
    """Raises ArgumentError for a kind that is not written."""
    if kind is not None and kind not in WRITABLE:
        raise ArgumentError(f"merge: {kind!r:.40} is no kind that is written; expected one of "
                            f"{', '.join(WRITABLE)}")  # fmt: skip


# --- GGUF files ----------------------------------------------------------------------------------


class _Changed(gguf.GGUFTensor):
    """A tensor of a file whose values are made when they are written."""

    __slots__ = ("_make",)

    def __init__(
        self, shape: tuple[int, ...], kind: Kind, make: Callable[[], np.ndarray]
    ) -> None:
        self.kind, self.shape, self._make = kind, shape, make

    @property
    def raw(self) -> np.ndarray:  # type: ignore[override]
        return gguf.quantized(self._make(), self.kind).raw


def _gguf(file: gguf.GGUF, config: Config, to: Path, changes: Changes, kind: str | None) -> Path:
    tensors: dict[str, gguf.GGUFTensor] = {}
    wider = False
    for name, stored in file.tensors.items():
        wanted = stored.kind
        if kind is not None and len(stored.shape) > 1:
            wanted = _fitting(KINDS[kind], stored.shape)
        parts = sources.inside(name, stored.shape[0] if stored.shape else 0, config)
        if wanted is stored.kind and not parts.keys() & changes.keys():
            tensors[name] = stored
            continue
        if wanted.dtype is None and (kind is None or wanted.name not in QUANTIZERS):
            wanted = _fitting(KINDS["Q8_0"], stored.shape)
            wider = True
        make = partial(_values, parts, changes, partial(numbers, stored))
        tensors[name] = _Changed(stored.shape, wanted, make)
    metadata = gguf.Metadata(file.metadata)
    metadata.types = dict(file.metadata.types)
    if kind is not None or wider:
        metadata["general.file_type"] = _FILE_TYPES[kind or "Q8_0"]
    gguf.save(to, metadata, tensors)
    return to


def _fitting(wanted: Kind, shape: tuple[int, ...]) -> Kind:
    """The kind, or one whose blocks divide a row."""
    names = (wanted.name, "Q8_0", "F16")
    return next(KINDS[n] for n in names if shape[-1] % KINDS[n].elements == 0)


def _values(
    parts: Mapping[str, int], changes: Changes, read: Callable[[], np.ndarray]
) -> np.ndarray:
    """A tensor's values, of whose rows each part is changed as its own name says."""
    values = np.array(read())
    start = 0
    for name, rows in parts.items():
        span = slice(start, start + rows) if len(parts) > 1 else slice(None)
        if name in changes:
            values[span] = changes[name](values[span])
        start += rows
    return values


# --- folders -------------------------------------------------------------------------------------


def _folder(
    found: checkpoint.Checkpoint, config: Config, to: Path, changes: Changes, kind: str | None
) -> Path:
    if kind is not None:
        raise ArgumentError(f"merge: {found.folder} is a folder, whose weights keep their dtype; a "
                            "kind is for GGUF files")  # fmt: skip
    arrays = {full: _array(full, stored, config, changes) for full, stored in found.items()}
    to.mkdir(parents=True, exist_ok=True)
    for beside in sorted(found.folder.iterdir()):
        if beside.is_file() and ".safetensors" not in beside.name:
            shutil.copyfile(beside, to / beside.name)
    safetensors.save(arrays, to / checkpoint.WEIGHTS, {"format": "pt"})
    return to


def _array(full: str, stored: StoredArray, config: Config, changes: Changes) -> StoredArray:
    """An array of the file: what is read of it is changed and put back as it was found."""
    place = hugging_face.placed(full, config.architecture)
    if place is None:
        return stored
    name, expert = place
    turned = hugging_face.is_turned(name, stored.shape, config.architecture)
    parts = sources.inside(name, stored.shape[1 if turned else 0], config)
    if not parts.keys() & changes.keys():
        return stored
    given = numbers(stored)
    if expert is not None:
        values = changes[name](given)[expert]
    else:
        less = np.float32(hugging_face.is_less_one(name, config.architecture))
        seen = given.T if turned else given
        values = _values(parts, changes, lambda: seen + less) - less
        values = values.T if turned else values
    return StoredArray(stored.dtype, dt.encode(np.ascontiguousarray(values), stored.dtype))
