"""Fetches a dataset file once: atomic, resumable, size checked."""

from __future__ import annotations

import logging
import os
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import h5py
from filelock import FileLock
from tqdm import tqdm

from rllib_calql.data.errors import DatasetError

logger = logging.getLogger(__name__)

CHUNK = 1 << 18
TIMEOUT = 60.0  # seconds without an answer


def download_hdf5(url: str, target: Path) -> None:
    """Downloads `url` to `target`, unless it is there already.

    What arrives goes to `target` + `.part` first; an interrupted download is resumed there by the next call.
    The file takes its name only when it has the announced size and opens as HDF5. Processes that ask for the
    same file wait for each other. A progress bar is shown on a terminal.

    Raises:
        DatasetError: the server or the disk refused, or what arrived is incomplete or no HDF5 file. The
            message says which file to put where by hand.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            if target.exists():
                return
            logger.info("downloading %s to %s", url, target)
            _fetch(url, part)
            if not _opens(part):
                part.unlink()
                raise DatasetError(f"what {url} sent is not an HDF5 file. {by_hand(url, target)}")
            os.replace(part, target)
    except (OSError, HTTPException) as error:
        raise DatasetError(f"{url} could not be downloaded ({error}). {by_hand(url, target)}") from error


def by_hand(url: str, target: Path) -> str:
    """What to do where no download is possible."""
    return f"Download {url} yourself and put it at {target}"


def _fetch(url: str, part: Path) -> None:
    """Appends what is missing to `part`; starts again where that is not possible."""
    have = part.stat().st_size if part.exists() else 0
    try:
        answer = urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":  # everything is there already
            return
        part.unlink()
        return _fetch(url, part)
    with answer:
        if answer.status != 206:
            have = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            raise OSError("the server sent another part of the file than asked for; try again")
        length = answer.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None)
        with part.open("ab" if have else "wb") as file, bar:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    size = part.stat().st_size
    if total is not None and size != total:
        raise OSError(f"only {size} of {total} bytes arrived; the next try goes on from there")


def _opens(path: Path) -> bool:
    try:
        with h5py.File(path, "r"):
            return True
    except OSError:
        return False
