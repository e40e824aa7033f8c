"""Arrow columns as numpy arrays with one entry per row, whatever way a vector was put into the column."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rllib_calql.data.rows import Tree

# Tensors of Arrow itself and of Ray Data are flat lists with a shape in the type's metadata.
_TENSORS = ("arrow.fixed_shape_tensor", "ray.data.arrow_tensor", "ray.data.arrow_tensor_v2")
_NAME, _METADATA = b"ARROW:extension:name", b"ARROW:extension:metadata"


class ColumnError(Exception):
    """A column cannot be used; `row` (from 0) is the first bad one, None where all are."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


def values(column: pa.Array, field: pa.Field, shape: Sequence[int] | None = None) -> Tree:
    """The rows of a column as (n, ...) arrays, nested as structs are; numbers keep their type, bytes are uint8.

    Args:
        column: n rows of numbers, booleans, (nested) lists, fixed-size lists, tensors, bytes or structs.
        field: its field, which tells the shape of tensors.
        shape: of one row, where the column has its numbers flat.

    Raises:
        ColumnError: nulls, lists of different lengths, values that are not numbers, or another shape.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    result = _values(column, field)
    if shape is None and isinstance(column, pa.FixedShapeTensorArray):
        return np.asarray(column.to_numpy_ndarray())  # knows the order of the axes too
    if shape is None:
        shape = _tensor_shape(field)
    elif not isinstance(result, np.ndarray):
        raise ColumnError(f"is {field.type}, which a shape cannot be given to")
    if shape is None or not isinstance(result, np.ndarray):
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            raise ColumnError(
                "holds bytes: where they are raw uint8 images, say so with shapes={'observations': [height, "
                "width, channels]}; encoded images (PNG, JPEG) must be decoded first"
            )
        return result
    if math.prod(shape) != math.prod(result.shape[1:]):
        raise ColumnError(f"has rows of shape {result.shape[1:]}, which do not fill {tuple(shape)}")
    return result.reshape(len(result), *shape)


def _values(column: pa.Array, field: pa.Field) -> Tree:
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if column.null_count:
        raise ColumnError("is null", int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))))
    kind = column.type
    if pa.types.is_struct(kind):
        children = zip(kind, column.flatten(), strict=True)
        return {child.name: _named(child.name, data, child) for child, data in children}
    if pa.types.is_fixed_size_list(kind):
        return _lists(column, kind.value_field, kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _lists(column, kind.value_field, _same(pc.list_value_length(column), "numbers"))
    if pa.types.is_dictionary(kind):
        return _values(column.dictionary_decode(), field)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        length = _same(pc.binary_length(column), "bytes")
        return np.frombuffer(b"".join(column.to_pylist()), dtype=np.uint8).reshape(len(column), length)
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ColumnError(f"has values of type {kind}, not numbers")
    return column.to_numpy(zero_copy_only=False)


def _lists(column: pa.Array, inner: pa.Field, length: int) -> Tree:
    """Lists of `length` entries each, (n, length, ...)."""
    if length == 0:
        raise ColumnError("has empty lists", 0)
    try:
        entries = _values(column.flatten(), inner)
    except ColumnError as error:
        raise ColumnError(f"holds a list in which a value {error}", _divided(error.row, length)) from None
    if not isinstance(entries, np.ndarray):
        raise ColumnError("holds lists of structs: make a struct of lists of it", 0)
    return entries.reshape(len(column), length, *entries.shape[1:])


def _named(name: str, column: pa.Array, field: pa.Field) -> Tree:
    try:
        return values(column, field)
    except ColumnError as error:
        raise ColumnError(f"has an entry {name!r} which {error}", error.row) from None


def _same(lengths: pa.Array, unit: str) -> int:
    """The one length of all rows."""
    array = lengths.to_numpy(zero_copy_only=False)
    if len(array) == 0:
        return 1
    if len(different := np.flatnonzero(array != array[0])):
        row = int(different[0])
        raise ColumnError(f"has {array[row]} {unit} where the rows before have {array[0]}", row)
    return int(array[0])


def _tensor_shape(field: pa.Field) -> tuple[int, ...] | None:
    kind: Any = field.type
    if isinstance(kind, pa.BaseExtensionType):
        name, shape = str(kind.extension_name), getattr(kind, "shape", None)
    else:
        metadata = field.metadata or {}
        if _NAME not in metadata:
            return None
        name = metadata[_NAME].decode(errors="replace")
        try:
            stored = json.loads(metadata.get(_METADATA, b"null"))
        except ValueError:
            stored = None
        shape = stored.get("shape") if isinstance(stored, dict) else stored
    if name not in _TENSORS:
        if pa.types.is_struct(getattr(kind, "storage_type", kind)):  # such as Ray Data's tensors of several shapes
            raise ColumnError(f"has Arrow's extension type {name!r}, which is not known here: write lists")
        return None
    if not isinstance(shape, (list, tuple)) or not all(isinstance(size, int) for size in shape):
        raise ColumnError(f"has tensors of the shape {shape!r}")
    return tuple(shape)


def _divided(row: int | None, length: int) -> int | None:
    return None if row is None else row // length
