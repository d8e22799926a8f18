"""A torch state dict in the legacy (pre-zip) file format, read without torch and without trust.

The file is five pickles (magic number, protocol, system information, the state dict, the storage
keys) and then, for each key, a little-endian int64 element count and the raw elements.

Invariant: unpickling calls nothing but the names in `_ALLOWED`, all of which are defined here or
are `OrderedDict`; any other name, persistent id or file, however damaged, is a `TorchPickleError`.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections import OrderedDict
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001

Shape = tuple[int, ...]


class TorchPickleError(ValueError):
    """The file is not a legacy torch state dict, or asks for more than tensors."""


@dataclass(frozen=True)
class _Storage:
    """A flat buffer whose elements come later in the file."""

    key: str
    dtype: np.dtype[Any]
    size: int


@dataclass(frozen=True)
class _View:
    """A strided window on a storage, in elements."""

    storage: _Storage
    offset: int
    shape: Shape
    strides: Shape

    def array(self, buffers: dict[str, np.ndarray]) -> np.ndarray:
        """The window as a contiguous array, checked to lie inside its buffer."""
        buffer = buffers[self.storage.key]
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        empty = 0 in self.shape
        if math.prod(self.shape) > buffer.size or not (empty or last < buffer.size):
            _not_a_state_dict(
                f"a tensor of shape {self.shape} reaches outside its {buffer.size} stored elements"
            )
        strides = tuple(s * buffer.itemsize for s in self.strides)
        start = buffer[self.offset :]
        return np.lib.stride_tricks.as_strided(start, self.shape, strides, writeable=False).copy()


class _RebuildTensor:
    """Stands for torch's function of that name; without slots, so that no pickle can alter it."""

    __slots__ = ()

    def __call__(
        self, storage: _Storage, offset: int, shape: Shape, strides: Shape, *_: object
    ) -> _View:
        """The tensor as a view, checked as far as it can be before the storage is read."""
        numbers = (offset, *shape, *strides)
        natural = all(isinstance(n, int) and n >= 0 for n in numbers)
        if not (isinstance(storage, _Storage) and natural and len(shape) == len(strides)):
            _not_a_state_dict(f"a tensor has shape {shape!r}, strides {strides!r}")
        return _View(storage, offset, shape, strides)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch", "HalfStorage"): "<f2",
    ("torch", "FloatStorage"): "<f4",
    ("torch", "DoubleStorage"): "<f8",
    ("torch", "LongStorage"): "<i8",
    ("torch", "IntStorage"): "<i4",
    ("torch", "ByteStorage"): "|u1",
}


class _Unpickler(pickle.Unpickler):
    """Resolves only the names that a state dict needs."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise TorchPickleError(
                f"the file asks to load '{module_name}.{global_name}', which is no part of a "
                "state dict; it was refused and nothing was run. Use a file from a source that "
                "you trust, saved with torch.save(model.state_dict(), path)"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", str(code), str(key), str(), int(size), None) if size >= 0:
                return _Storage(key, np.dtype(code), size)
        raise TorchPickleError(f"unknown persistent id {pid!r}; expected a plain torch storage")


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a legacy torch file as NumPy arrays, by name.

    Args:
        path: a file written by `torch.save(model.state_dict(), path)` before torch 1.6, or later
            with `_use_new_zipfile_serialization=False`.

    Returns:
        The state dict's arrays in the file's order, each with the tensor's shape and dtype.

    Raises:
        TorchPickleError: if the file is truncated, is no such file, or names any other class.
    """
    raw = Path(path).read_bytes()
    if raw.startswith(b"PK"):
        _not_a_state_dict("it is in the newer zip format")
    file = BytesIO(raw)
    if _load(file, int) != MAGIC or _load(file, int) != PROTOCOL:
        _not_a_state_dict("it does not start with torch's magic number")
    if not _load(file, dict).get("little_endian", False):
        _not_a_state_dict("it was written on a big-endian machine")
    state, keys = _load(file, dict), _load(file, list)
    for name, view in state.items():
        if not isinstance(view, _View):
            _not_a_state_dict(f"{name!r} is no tensor")
    buffers = _read_buffers(file, keys, {v.storage.key: v.storage for v in state.values()})
    return {name: view.array(buffers) for name, view in state.items()}


def _load(file: BytesIO, kind: type) -> Any:
    try:
        found = _Unpickler(file).load()
    except TorchPickleError:
        raise
    except Exception as error:  # damaged pickles raise nearly anything
        _not_a_state_dict(f"a pickle in it is damaged or cut off ({error})")
    if not isinstance(found, kind):
        _not_a_state_dict(f"it holds a {type(found).__name__} where a {kind.__name__} belongs")
    return found


def _read_buffers(
    file: BytesIO, keys: list[str], storages: dict[str, _Storage]
) -> dict[str, np.ndarray]:
    if sorted(storages) != sorted(map(str, keys)):
        _not_a_state_dict("its list of storages is not the one that its tensors use")
    return {key: _read_buffer(file, storages[key]) for key in keys}


def _read_buffer(file: BytesIO, storage: _Storage) -> np.ndarray:
    length = storage.size * storage.dtype.itemsize
    header, raw = file.read(8), file.read(length)
    if len(header) < 8 or len(raw) < length:
        raise TorchPickleError(
            f"the file ends inside storage {storage.key}, {length - len(raw)} bytes too early; "
            "it was not copied completely: install or download it again"
        )
    if struct.unpack("<q", header)[0] != storage.size:
        _not_a_state_dict(f"storage {storage.key} has another size than its tensors say")
    return np.frombuffer(raw, storage.dtype)


def _not_a_state_dict(reason: str) -> NoReturn:
    raise TorchPickleError(
        f"not a state dict in torch's legacy format: {reason}. Save it with "
        "torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)"
    )
