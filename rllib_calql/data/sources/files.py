"""Which files a path, a folder or a glob means, and in which order they are read."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection
from pathlib import Path

from rllib_calql.data.errors import DatasetError


def natural(path: Path) -> tuple[tuple[int, int | str], ...]:
    """A sorting key in which numbers count as numbers: part-2 before part-10."""
    pieces = re.split(r"(\d+)", str(path))
    return tuple((0, int(piece)) if piece.isdigit() else (1, piece) for piece in pieces)


def data_files(path: str | Path, suffixes: Collection[str]) -> list[Path]:
    """The files of a dataset in natural order.

    Args:
        path: a file (of any suffix), a glob (`**` for any depth), or a folder, which stands for all files of
            these suffixes in it and below; names that begin with a dot or an underscore are passed over, as
            Spark and Arrow mean them.
        suffixes: with the dot, in lower case.

    Raises:
        DatasetError: there is nothing, or a folder mixes suffixes.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = [file for file in path.rglob("*") if _visible(file.relative_to(path)) and file.is_file()]
        files = [file for file in inside if file.suffix.lower() in suffixes]
        found = sorted({file.suffix.lower() for file in files})
        if len(found) > 1:
            raise DatasetError(
                f"{path} has files of several kinds ({', '.join(found)}): name one kind with a glob such as "
                f"{path}/**/*{found[0]}"
            )
    else:
        files = [Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]
    if not files:
        raise DatasetError(f"there is no dataset file {path} (nor one of {', '.join(sorted(suffixes))} below it)")
    return sorted(files, key=natural)


def _visible(path: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in path.parts)
