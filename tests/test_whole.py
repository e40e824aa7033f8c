"""Folders that are whole or not there: real kills at every file operation, cut files, a full disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rllib_calql.data.whole import MANIFEST, CheckpointError, check_whole, whole_folder

# Saves a replay of 20 rows over a checkpoint of 10, again and again: forked children kill themselves before
# their n-th operation on files; the parent then expects one of the two, whole.
KILLER = """
import os, resource, signal, sys
sys.argv[0] = "calql"  # which does without Ray
from pathlib import Path
from rllib_calql.data import EpisodeStore
from rllib_calql.data import replay_files
from rllib_calql.data.whole import CheckpointError, check_whole, whole_folder
from tests.test_replay import episode

replay_files.FULL = 18 * 10
target, what = Path(sys.argv[1]), sys.argv[2]
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "shutil.rmtree")

def save(keeper):
    with whole_folder(target, linked=target) as folder:
        (folder / "other.txt").write_text("x" * 100_000)
        keeper.save(folder / "replay")

def rows():
    check_whole(target)
    store = EpisodeStore(100, 1, 1)
    replay_files.ReplayFiles(store).restore(target / "replay")
    return len(store)

store = EpisodeStore(100, 1, 1)
store.append(episode(0, 10))
keeper = replay_files.ReplayFiles(store)
save(keeper)
keeper.folder = target / "replay"

if what == "full":
    store.append(episode(1, 10))
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        save(keeper)
    except OSError as error:
        print("refused", error.errno)
    print(rows(), sorted(path.name for path in target.parent.iterdir()))
    sys.exit()

seen = []
for number in range(1, 500):
    child = os.fork()
    if child == 0:
        left = number
        def hook(event, arguments):
            global left
            if event in EVENTS:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        store.append(episode(1, 10))
        sys.addaudithook(hook)
        save(keeper)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    seen.append(rows())
    if status == 0:
        break
print(*seen)
"""


def run(target: Path, what: str) -> str:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(target), what],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_before_every_single_file_operation(tmp_path: Path) -> None:
    """The earlier checkpoint is there until the new one is whole: never none, never half of one."""
    seen = [int(word) for word in run(tmp_path / "checkpoint", "kill").split()]
    assert len(seen) > 25
    switch = seen.index(20)
    assert seen == [10] * switch + [20] * (len(seen) - switch)
    assert switch > 15


def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_litter(tmp_path: Path) -> None:
    assert run(tmp_path / "checkpoint", "full").splitlines() == ["refused 27", "10 ['checkpoint']"]


def save(target: Path, text: str = "abc") -> None:
    with whole_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text(text)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / "sub/file").unlink(), r"lacks its file sub/file \(No such file"),
        (lambda root: (root / "sub/file").write_text("ab"), "sub/file of .* has 2 bytes instead of 3"),
        (lambda root: (root / "sub/file").write_text("abd"), "sub/file of .* is damaged"),
        (lambda root: (root / MANIFEST).unlink(), "no complete checkpoint: .* written last, is missing"),
        (lambda root: (root / MANIFEST).write_text('{"files": {"su'), f"{MANIFEST} of .* is damaged"),
        (lambda root: (root / MANIFEST).write_text("[]"), f"{MANIFEST} of .* is damaged"),
        (lambda root: root.rename(root.with_name("elsewhere")), "is not the folder of a checkpoint"),
    ],
)
def test_what_is_not_whole_is_refused(tmp_path: Path, harm: object, message: str) -> None:
    save(tmp_path / "checkpoint")
    check_whole(tmp_path / "checkpoint")
    assert callable(harm)
    harm(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=message):
        check_whole(tmp_path / "checkpoint")


def test_a_damaged_checkpoint_can_be_saved_over(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / MANIFEST).write_text("{")
    save(tmp_path / "checkpoint", "new")
    check_whole(tmp_path / "checkpoint")


def test_foreign_files_are_neither_lost_nor_taken_for_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds files, but no complete checkpoint: save to a folder of its"):
        save(tmp_path)
    with pytest.raises(CheckpointError, match=r"notes\.txt is a file: a checkpoint needs a folder"):
        save(tmp_path / "notes.txt")
    target = tmp_path / "new" / "checkpoint"
    target.mkdir(parents=True)  # empty folders are fine: Tune makes them
    save(target)
    (target / "notes.txt").write_text("mine")
    save(target, "second")
    assert (target / "notes.txt").read_text() == "mine"
    assert (target / "sub/file").read_text() == "second"
    check_whole(target)
    assert sorted(path.name for path in target.parent.iterdir()) == ["checkpoint"]
    # killed before it was carried over: the next save does it
    shutil.copytree(target, target.with_name(".checkpoint.previous"))
    (target / "notes.txt").unlink()
    save(target, "third")
    assert (target / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in target.parent.iterdir()) == ["checkpoint"]


def test_a_failure_in_the_block_leaves_everything_as_it_was(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "checkpoint") as folder:
            (folder / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
    save(tmp_path / "checkpoint")
    with pytest.raises(KeyboardInterrupt):
        fail()
    check_whole(tmp_path / "checkpoint")
