"""The one way tests reach the datasets and golden numbers that live beside the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("CALQL_SHARED", Path(__file__).resolve().parents[1].parent / "shared"))


def shared_path(relative: str) -> Path:
    """The path of a shared file or folder; skips the calling test where it is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"shared/{relative} is not beside this checkout")
    return path
