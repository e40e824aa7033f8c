"""Pickles are read for their arrays; what else they ask for is never called."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rllib_calql.data import DatasetError
from rllib_calql.data.unpickle import unpickle


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_builtins(protocol: int) -> None:
    value = {
        "array": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "objects": np.array([None, {"a": 1}], dtype=object),
        "scalar": np.float64(2.5),
        "ordered": OrderedDict(a=1),
        "list": [1, "text", (True, None), b"bytes", bytearray(b"b"), {1, 2}, 1j],
    }
    read = unpickle(pickle.dumps(value, protocol=protocol))
    for name in ("array", "fortran"):
        np.testing.assert_array_equal(read[name], value[name])
    assert read["objects"].tolist() == [None, {"a": 1}]
    assert read["scalar"] == 2.5
    assert read["ordered"] == {"a": 1}
    assert read["list"] == value["list"]


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: np.array([evil]), lambda evil: {"a": [evil]}])
def test_calls_are_refused(tmp_path: Path, wrap: Any) -> None:
    with pytest.raises(DatasetError, match=r"asks for posix.system; only numpy arrays"):
        unpickle(pickle.dumps(wrap(Evil(tmp_path / "touched"))))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "value", [Path("x"), np.random.default_rng(0), eval, np.fromfile, getattr, type("X", (), {})]
)
def test_other_types_are_refused(value: Any) -> None:
    try:
        data = pickle.dumps(value)
    except (pickle.PicklingError, AttributeError):
        data = b"cbuiltins\nexec\n."
    with pytest.raises(DatasetError, match="only numpy arrays and builtin types are read"):
        unpickle(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        pickle.dumps(np.arange(100))[:60],
        b"cbuiltins\nbytearray\n(I100000000000000\ntR.",  # absurd size
        b"c_codecs\nencode\n(Vabc\nVzlib\ntR.",
    ],
)
def test_damaged(data: bytes) -> None:
    with pytest.raises(DatasetError, match="the pickle is damaged"):
        unpickle(data)
