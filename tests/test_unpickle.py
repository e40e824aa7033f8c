"""Pickles are read for their arrays; what else they ask for is never called."""

from __future__ import annotations

import contextlib
import os
import pickle
import tracemalloc
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
        "transposed": np.arange(24).reshape(2, 3, 4).transpose(0, 2, 1),
        "objects": np.array([None, {"a": 1}], dtype=object),
        "scalar": np.float64(2.5),
        "ordered": OrderedDict(a=1),
        "list": [1, "text", (True, None), b"bytes", bytearray(b"b"), {1, 2}, 1j],
    }
    read = unpickle(pickle.dumps(value, protocol=protocol))
    for name in ("array", "fortran", "transposed"):
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


class Made:
    """Pickles as a call, and perhaps a state."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


REDUCED: Any = np.array(0).__reduce__()
RECONSTRUCT, EMPTY = REDUCED[:2]
SCALAR: Any = np.float64(0).__reduce__()[0]


def test_forged_pointers() -> None:
    """numpy's own constructors make an object array of raw bytes where a dtype denies that it has objects."""
    denies = Made(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))
    for array in (
        Made(RECONSTRUCT, EMPTY, (1, (2,), denies, False, b"A" * 16)),
        Made(SCALAR, (denies, b"A" * 8)),
    ):
        with pytest.raises(DatasetError, match="the pickle is damaged"):
            unpickle(pickle.dumps(array, protocol=2))


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Made(np.ndarray, ((10**12,),))),  # arrays without content
        pickle.dumps(Made(RECONSTRUCT, (np.ndarray, (10**12,), b"d"))),
        pickle.dumps(Made(RECONSTRUCT, EMPTY, (1, (10**12,), np.dtype("f8"), False, b"A" * 16))),
        b"\x80\x04Nr\xff\xff\xff\xff.",  # memo number 2 ** 32 - 1
        b"\x80\x05\x96" + (10**12).to_bytes(8, "little") + b"few.",  # BYTEARRAY8
        b"\x80\x04\x8e" + (10**12).to_bytes(8, "little") + b"few.",  # BINBYTES8
        b"\x80\x04\x8b\xff\xff\xff\x7ffew.",  # LONG4
        b"\x82\x01.",  # an extension of copyreg's registry
        b"cbuiltins\nset\n}Vx\nI1\nsb.",  # a state for what has none
    ],
)
def test_absurd_sizes(data: bytes) -> None:
    tracemalloc.start()
    try:
        with contextlib.suppress(DatasetError):
            unpickle(data)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_records_are_refused() -> None:
    with pytest.raises(DatasetError, match="neither numbers nor text nor objects"):
        unpickle(pickle.dumps(np.zeros(2, dtype=[("x", "f4")])))
    with pytest.raises(DatasetError, match="neither numbers nor text nor objects"):
        unpickle(pickle.dumps(np.zeros(2, dtype="M8[s]")))


def test_what_is_shared_stays_shared() -> None:
    array = np.arange(3, dtype=">i2")
    rows: list[Any] = [array, (array, {"a": array})]
    rows.append(rows)
    for _ in range(60):  # 2 ** 60 places
        rows = [rows, rows]
    read = unpickle(pickle.dumps(rows))
    for _ in range(60):
        assert read[0] is read[1]
        read = read[0]
    assert read[2] is read
    assert read[0] is read[1][0] is read[1][1]["a"]
    assert read[0].tolist() == [0, 1, 2]
    assert read[0].dtype == array.dtype
    read[0][0] = 5  # arrays are one's own
