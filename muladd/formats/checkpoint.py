"""A folder with config.json and safetensors, in one file or in many that an index names.

This is the layout of the model hubs: `model.safetensors`, or `model.safetensors.index.json`, whose
`weight_map` says which file beside it holds which array.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from muladd.errors import FormatError
from muladd.formats import safetensors
from muladd.formats.stored import PathLike, StoredArray, StoredArrays, map_file

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MOST_JSON = 64 << 20  # bytes
MOST_FILES = 9999


class Checkpoint(StoredArrays):
    """The arrays of a folder by name, memory-mapped, and `config`, what config.json says."""

    def __init__(
        self, folder: Path, config: dict[str, Any], arrays: dict[str, StoredArray]
    ) -> None:
        super().__init__(arrays)
        self.folder, self.config = folder, config

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.folder)!r}, {len(self)} arrays, {self.nbytes} bytes)"


def load(folder: PathLike) -> Checkpoint:
    """A folder's arrays and config. No array is read before it is used, and none is copied.

    Raises FormatError naming the file and what is wrong with it: a file that is missing or damaged,
    an index that names arrays its files lack, or files that are not plain names in this folder.
    """
    here = Path(folder)
    if not here.is_dir():
        raise FormatError(f"checkpoint: {here}: is no folder; expected one with {CONFIG}")
    config = read_json(here / CONFIG)
    if (here / WEIGHTS).exists():
        return Checkpoint(here, config, dict(safetensors.open_file(here / WEIGHTS)))
    if not (here / INDEX).exists():
        raise FormatError(f"checkpoint: {here}: has neither {WEIGHTS} nor {INDEX}; expected one")
    return Checkpoint(here, config, _sharded(here))


def read_json(path: Path, who: str = "checkpoint", kind: type = dict) -> Any:
    """The object (or what is of another kind) in a JSON file. Raises FormatError where there is
    none; `who` reads it."""
    data = map_file(path, who)
    if len(data) > MOST_JSON:
        raise FormatError(f"{who}: {path}: has {len(data)} bytes; expected at most "
                          f"{MOST_JSON} of JSON")  # fmt: skip
    try:
        found = json.loads(bytes(data).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{who}: {path}: is not JSON ({error})") from None
    if not isinstance(found, kind):
        expected = "an object" if kind is dict else f"a {kind.__name__}"
        raise FormatError(f"{who}: {path}: holds a {type(found).__name__}; expected "
                          f"{expected}")  # fmt: skip
    return found


def _sharded(here: Path) -> dict[str, StoredArray]:
    index = here / INDEX
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise FormatError(f"checkpoint: {index}: weight_map is {type(places).__name__}; expected "
                          "a map from an array's name to a file's")  # fmt: skip
    names = sorted({_plain_name(file, index) for file in places.values()})
    if len(names) > MOST_FILES:
        raise FormatError(f"checkpoint: {index}: names {len(names)} files; expected at most "
                          f"{MOST_FILES}")  # fmt: skip
    files = {name: safetensors.open_file(here / name) for name in names}
    for array, file in places.items():
        if array not in files[file]:
            raise FormatError(f"checkpoint: {index}: {array!r:.80} should lie in {file!r}, which "
                              "has no such array")  # fmt: skip
    return {array: files[file][array] for array, file in places.items()}


def _plain_name(file: Any, index: Path) -> str:
    """A file in the index's own folder: no path may lead out of it."""
    plain = isinstance(file, str) and file.endswith(".safetensors") and not file.startswith(".")
    if not plain or any(c in "/\\:" or ord(c) < 32 for c in file):
        raise FormatError(f"checkpoint: {index}: names the file {file!r:.80}; expected the name "
                          "of a .safetensors file in the same folder")  # fmt: skip
    return file
