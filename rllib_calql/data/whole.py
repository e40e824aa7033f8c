"""Folders that are whole or not there: written beside their place, listed in a manifest, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "calql_manifest.json"


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says which, why, and what to do."""


@contextmanager
def whole_folder(path: str | Path, linked: Path | None = None) -> Iterator[Path]:
    """Gives an empty folder to write into; when the block ends it takes the place of `path`.

    If the block fails, or the process is killed at any moment, what was at `path` before is still there. Files
    at `path` that are not its manifest's (somebody else's notes) are carried over.

    Args:
        path: where the folder is to be.
        linked: an earlier such folder; files that are hard links to its files are not read again.

    Raises:
        CheckpointError: `path` holds files, but no manifest: nothing that this function made.
        OSError: no room, no permission.
    """
    path = recover(path)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file: a checkpoint needs a folder")
    if path.exists() and not (path / MANIFEST).exists() and any(path.iterdir()):
        raise CheckpointError(
            f"{path} holds files, but no complete checkpoint: save to a folder of its own, or empty this one"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path, "partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        yield partial
        _write_manifest(partial, linked)
        _put_in_place(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        recover(path)
        raise


def recover(path: str | Path) -> Path:
    """Puts back what was at `path` where a process was killed between two renames; returns the full path."""
    path = Path(path).expanduser().absolute()
    previous = _beside(path, "previous")
    if previous.exists() and not path.exists():
        previous.rename(path)
    return path


def check_whole(path: str | Path) -> None:
    """Reads every file that the manifest lists.

    Raises:
        CheckpointError: there is no folder or no manifest, or a file is missing, cut or changed.
    """
    path = recover(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not the folder of a checkpoint")
    for name, expected in _listed(path).items():
        try:
            found = _fingerprint(path / name)
        except OSError as error:
            raise CheckpointError(f"the checkpoint {path} lacks its file {name} ({error.strerror})") from error
        if found["size"] != expected["size"]:
            raise CheckpointError(
                f"{name} of the checkpoint {path} has {found['size']} bytes instead of {expected['size']}: "
                "take an earlier checkpoint"
            )
        if found != expected:
            raise CheckpointError(f"{name} of the checkpoint {path} is damaged: take an earlier checkpoint")


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}")


def _listed(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads((path / MANIFEST).read_text())["files"]
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} holds no complete checkpoint: {MANIFEST}, which is written last, is missing"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{MANIFEST} of the checkpoint {path} is damaged: take an earlier checkpoint"
        ) from error


def _listed_if_whole(path: Path | None) -> dict[str, dict[str, Any]]:
    try:
        return {} if path is None else _listed(path)
    except CheckpointError:
        return {}


def _write_manifest(folder: Path, linked: Path | None) -> None:
    known = _listed_if_whole(linked)
    files = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = file.relative_to(folder).as_posix()
        if linked is not None and name in known and _is_same(file, linked / name):
            files[name] = known[name]
        else:
            files[name] = _fingerprint(file)
            _sync(file)
    with (folder / MANIFEST).open("w") as manifest:
        json.dump({"format": 1, "files": files}, manifest, indent=1)
    _sync(folder / MANIFEST)


def _is_same(file: Path, other: Path) -> bool:
    return other.exists() and file.samefile(other)


def _fingerprint(file: Path) -> dict[str, int]:
    size = checksum = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            size += len(block)
            checksum = zlib.crc32(block, checksum)
    return {"size": size, "crc32": checksum}


def _sync(path: Path) -> None:
    """Waits until a file or a folder's list of files is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _carry_over(previous: Path, path: Path) -> None:
    """Moves what is somebody else's from the earlier folder to the present one; the rest is deleted."""
    if (previous / MANIFEST).exists():  # else it is being deleted already
        own = {name.split("/")[0] for name in _listed_if_whole(previous)} | {MANIFEST}
        for other in previous.iterdir():
            if other.name not in own and not (path / other.name).exists():
                other.rename(path / other.name)
    shutil.rmtree(previous)


def _put_in_place(partial: Path, path: Path) -> None:
    previous = _beside(path, "previous")
    if previous.exists():  # of a process that was killed while it carried files over
        _carry_over(previous, path)
    _sync(partial)
    if (path / MANIFEST).exists():
        path.rename(previous)
        partial.rename(path)
        _carry_over(previous, path)
    else:
        partial.rename(path)  # also takes the place of an empty folder
    _sync(path.parent)
