"""Pickles of numpy arrays, read without running what a pickle may ask for.

A pickle is a program: `pickle.load` of a stranger's file can do anything. Here it may only call the functions of
this module, which make arrays and builtin containers. numpy's own constructors are not among them: with chosen
arguments they make arrays of forged pointers. Readers of files come here only with `allow_pickle=True`.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import sys
from collections.abc import Callable
from typing import IO, Any, ClassVar

import numpy as np

from rllib_calql.data.errors import DatasetError

_DTYPE = re.compile(r"[<>|=]?([biufc]\d{1,2}|[SU]\d{1,9}|O8?)")


def unpickle(data: bytes | IO[bytes]) -> Any:
    """The arrays, numbers, strings and containers of a pickle.

    Raises:
        DatasetError: it asks for anything else, or is damaged.
    """
    content = data if isinstance(data, bytes) else data.read()
    try:
        # What Python 2 wrote as str is bytes of arrays.
        loaded = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        return _Finisher().finished(loaded)
    except DatasetError:
        raise
    except Exception as error:  # a damaged pickle can make any call fail
        raise DatasetError(f"the pickle is damaged: {type(error).__name__}: {error}") from error


class _Dtype:
    """A dtype of plain numbers, texts or objects."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise DatasetError(f"an array of {code!r} is neither numbers nor text nor objects")
        self.dtype = np.dtype(code)

    def setstate(self, state: Any) -> None:
        _, byteorder, *record = state[:5]
        if any(part is not None for part in record):
            raise DatasetError("an array of records is neither numbers nor text nor objects")
        self.dtype = self.dtype.newbyteorder(byteorder)


class _Array:
    """An array on its way: what it holds may not be complete before the pickle's end."""

    shape: Any = ()
    dtype = np.dtype("u1")
    fortran = False
    content: Any = b""

    def setstate(self, state: Any) -> None:
        _, self.shape, dtype, self.fortran, self.content = state
        self.dtype = dtype.dtype


class _NDArray:
    """Stands for the class `numpy.ndarray`, which nothing may call."""


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler: the one in C allocates whatever memo size a pickle names."""

    stack: list[Any]
    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4):  # copyreg's registry knows more classes than we do
        del dispatch[_code[0]]

    def find_class(self, module: str, name: str) -> Any:
        # Old and new numpy have these in different places, as have Python 2 and 3.
        found = (module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins"), name)
        if found not in _CALLABLE:
            raise DatasetError(
                f"the pickle asks for {module}.{name}; only numpy arrays and builtin types are read: convert the "
                "data to .npz with numpy where you trust it"
            )
        return _CALLABLE[found]

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], (_Dtype, _Array)):
            raise ValueError(f"a state for {type(self.stack[-1]).__name__}")
        self.stack[-1].setstate(state)

    def load_bytearray8(self) -> None:
        length = int.from_bytes(self.read(8), "little")
        if length > sys.maxsize:
            raise ValueError("too many bytes")
        self.append(bytearray(self.read(length)))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


class _Finisher:
    """Puts arrays in the places of `_Array`s, each once."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[Any, Any]] = {}  # by id; holds the key's object so that the id stays its own

    def finished(self, value: Any) -> Any:
        if not isinstance(value, (_Array, _Dtype, list, tuple, dict)):
            return value
        if id(value) in self._done:
            return self._done[id(value)][1]
        if isinstance(value, list):
            self._done[id(value)] = value, value
            value[:] = map(self.finished, value)
            return value
        if isinstance(value, dict):
            self._done[id(value)] = value, value
            for key, item in value.items():
                value[key] = self.finished(item)
            return value
        result: Any
        if isinstance(value, tuple):
            result = tuple(map(self.finished, value))
        else:
            result = value.dtype if isinstance(value, _Dtype) else self._array(value)
        self._done[id(value)] = value, result
        return result

    def _array(self, value: _Array) -> np.ndarray:
        if not value.dtype.hasobject:
            return _frombuffer(value.content, value.dtype, value.shape, "F" if value.fortran else "C")
        if not isinstance(value.content, list) or len(value.content) != math.prod(value.shape):
            raise ValueError(f"not the objects of an array of shape {value.shape}")
        flat = np.empty(len(value.content), dtype=object)
        for index, item in enumerate(value.content):
            flat[index] = self.finished(item)
        return flat.reshape(value.shape, order="F" if value.fortran else "C")


def _reconstruct(subtype: Any, *_: Any) -> _Array:
    if subtype is not _NDARRAY:
        raise ValueError("an array of another class")
    return _Array()


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> np.ndarray:
    dtype = dtype.dtype if isinstance(dtype, _Dtype) else dtype
    if dtype.hasobject:
        raise ValueError("objects as bytes")
    flat = np.frombuffer(_bytes(content), dtype)
    if order == "K":  # as numpy 2.4 writes transposed arrays
        return flat.reshape(shape).transpose(axis_order).copy()
    return flat.reshape(shape, order=order).copy()


def _scalar(dtype: Any, content: Any = b"") -> Any:
    return _frombuffer(content, dtype, (), "C")[()]


def _bytes(content: Any, encoding: str = "latin1") -> bytes:
    """Bytes as any protocol writes them; old ones as text."""
    if isinstance(content, str):
        if encoding not in ("latin1", "latin-1"):
            raise ValueError(f"bytes encoded as {encoding!r}")
        return content.encode("latin1")
    if not isinstance(content, (bytes, bytearray)):
        raise ValueError(f"{type(content).__name__} in the place of bytes")
    return bytes(content)


def _bytearray(content: Any = b"", encoding: str = "latin1") -> bytearray:
    return bytearray(_bytes(content, encoding))


_NDARRAY = _NDArray()
_CALLABLE: dict[tuple[str, str], Any | Callable[..., Any]] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("builtins", "bytearray"): _bytearray,
    ("builtins", "bytes"): _bytes,
    ("builtins", "complex"): complex,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "set"): set,
    ("builtins", "slice"): slice,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _bytes,  # how old protocols write bytes
}


def check_numbers(array: Any) -> np.ndarray:
    """The array, if it holds plain numbers.

    Raises:
        DatasetError: it holds objects or text.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"an array of {array.dtype} is not numbers")
    return array
