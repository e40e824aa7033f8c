"""Pickles of numpy arrays, read without running what a pickle may ask for.

A pickle is a program: `pickle.load` of a stranger's file can do anything. Here only the constructors of numpy
arrays and of builtin containers may be called. Readers of files come here only with `allow_pickle=True`.
"""

from __future__ import annotations

import io
import pickle
from typing import IO, Any

import numpy as np

from rllib_calql.data.errors import DatasetError

_NUMPY = {
    "numpy": ("ndarray", "dtype"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy.core.numeric": ("_frombuffer",),
    "numpy._core.numeric": ("_frombuffer",),
}
_BUILTINS = ("bytearray", "complex", "frozenset", "set", "slice")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _NUMPY.get(module, ()):
            # Old and new numpy have these in different places.
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return super().find_class("builtins", name)
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) == ("_codecs", "encode"):  # how old protocols write bytes
            return _latin1
        raise DatasetError(
            f"the pickle asks for {module}.{name}; only numpy arrays and builtin types are read: convert the data "
            "to .npz with numpy where you trust it"
        )


def unpickle(data: bytes | IO[bytes]) -> Any:
    """The arrays, numbers, strings and containers of a pickle.

    Raises:
        DatasetError: it asks for anything else, or is damaged.
    """
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        # What Python 2 wrote as str is bytes of arrays.
        return _Unpickler(file, encoding="latin1").load()
    except DatasetError:
        raise
    except Exception as error:  # a damaged pickle can make any call fail
        raise DatasetError(f"the pickle is damaged: {type(error).__name__}: {error}") from error


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def check_numbers(array: Any) -> np.ndarray:
    """The array, if it holds plain numbers.

    Raises:
        DatasetError: it holds objects or text.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"an array of {array.dtype} is not numbers")
    return array
