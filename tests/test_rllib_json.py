"""RLlib's JSON logs by hand: older ones, several policies, broken lines."""

from __future__ import annotations

import base64
import json
import os
import pickle
from pathlib import Path
from typing import Any

import lz4.frame
import msgpack
import msgpack_numpy
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rllib_calql.data import DatasetError, DatasetWarning, open_dataset
from rllib_calql.data.sources import open_source


def batch(**changes: Any) -> dict[str, Any]:
    """Two episodes of 3 and 2 steps, as RLlib 2.60 writes them; a change of None removes a column."""
    columns = {
        "type": "SampleBatch",
        "obs": [[0.0], [1.0], [2.0], [5.0], [6.0]],
        "new_obs": [[1.0], [2.0], [3.0], [6.0], [7.0]],
        "actions": [[0.1], [0.2], [-1.7], [0.4], [0.5]],
        "rewards": [1.0, 2.0, 3.0, 4.0, 5.0],
        "terminateds": [False, False, False, False, True],
        "truncateds": [False, False, True, False, False],
        "infos": [{}] * 5,
        "eps_id": [111, 111, 111, 222, 222],
        "agent_index": [0] * 5,
        "t": [0, 1, 2, 0, 1],
        **changes,
    }
    return {name: column for name, column in columns.items() if column is not None}


def write(path: Path, *batches: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in batches))
    return path


def test_one_batch(tmp_path: Path) -> None:
    data = open_dataset(write(tmp_path / "output_worker-0_0.json", batch()))
    np.testing.assert_array_equal(data.observations[:, 0], [0, 1, 2, 5, 6])
    np.testing.assert_array_equal(data.final_observations[:, 0], [3, 7])
    np.testing.assert_array_equal(data.terminated, [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(data.truncated, [0, 0, 1, 0, 0])
    np.testing.assert_allclose(data.actions[:, 0], [0.1, 0.2, -1.7, 0.4, 0.5], rtol=1e-6)


def rows(start: int, end: int, **changes: Any) -> dict[str, Any]:
    whole = batch(**changes)
    return {name: column if name == "type" else column[start:end] for name, column in whole.items()}


def test_interleaved_fragments_unfinished_episodes_and_repeats(tmp_path: Path) -> None:
    lines = [
        rows(0, 2),  # the beginning of episode 111 ...
        rows(3, 4),  # ... then of 222, which the log leaves unfinished ...
        {"type": "MultiAgentBatch", "count": 2, "policy_batches": {"default_policy": rows(1, 3)}},  # row 1 again
        rows(0, 3),  # all of 111 again
    ]
    write(tmp_path / "worker-0.json", *lines[:2])
    write(tmp_path / "worker-1.json", *lines[2:])
    with pytest.warns(DatasetWarning, match="4 rows have the episode and the step of another one"):
        data = open_dataset(tmp_path)
    np.testing.assert_array_equal(data.observations[:, 0], [0, 1, 2, 5])
    np.testing.assert_array_equal(data.truncated, [0, 0, 1, 1])
    np.testing.assert_array_equal(data.final_observations[:, 0], [3, 6])


def test_missing_steps_cut_an_episode(tmp_path: Path) -> None:
    write(tmp_path / "a.json", rows(0, 1), rows(2, 3))
    data = open_dataset(tmp_path)
    np.testing.assert_array_equal(data.observations[:, 0], [0, 2])
    np.testing.assert_array_equal(data.truncated, [1, 1])
    np.testing.assert_array_equal(data.final_observations[:, 0], [1, 3])


def test_old_dones(tmp_path: Path) -> None:
    """Before Ray 2.3 `dones` were terminations and time-outs alike: the caller says which."""
    old = batch(terminateds=None, truncateds=None, dones=[False, False, True, False, True])
    write(tmp_path / "a.json", old)
    assert open_dataset(tmp_path).terminated.sum() == 2
    assert open_dataset(tmp_path, dones="truncated").truncated.sum() == 2
    with pytest.raises(DatasetError, match="dones must be 'terminated' or 'truncated', not 'both'"):
        open_dataset(tmp_path, dones="both")


def test_rows_without_ids_follow_each_other(tmp_path: Path) -> None:
    first = rows(0, 1, eps_id=None, t=None, agent_index=None)
    write(tmp_path / "a.json", first, rows(1, 5, eps_id=None, t=None, agent_index=None))
    np.testing.assert_array_equal(open_dataset(tmp_path).episode_ends, [2, 4])


def packed(value: Any) -> str:
    return base64.b64encode(lz4.frame.compress(pickle.dumps(value))).decode()


def test_discrete_actions_and_packed_images(tmp_path: Path) -> None:
    images = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
    write(tmp_path / "a.json", batch(obs=packed(images), new_obs=packed(images + 1), actions=[0, 3, 1, 2, 0]))
    source = open_source(tmp_path, allow_pickle=True)
    (chunk,) = source.chunks()
    np.testing.assert_array_equal(chunk.observations, images)
    np.testing.assert_array_equal(chunk.actions, [0, 3, 1, 2, 0])
    assert not source.metadata.actions_normalized


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch evil",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"some": "json"}, "line 1: not a batch of RLlib"),
        ([1, 2], "line 1: not a batch of RLlib"),
        (
            {"type": "MultiAgentBatch", "policy_batches": {"red": {}, "blue": {}}},
            r"line 1: the batch is of 2 policies \(red, blue\): CalQL trains one policy",
        ),
        (batch(obs=None), "line 1: the batch has no 'obs'; it has "),
        (
            batch(obs=[[0.0], [1.0, 2.0], [2.0], [5.0], [6.0]]),
            "line 1: 'obs' must be numbers, as many in each row",
        ),
        (batch(obs=[["x"]] * 5), "line 1: 'obs' must be numbers"),
        (batch(rewards=[1.0] * 4), r"line 1: columns have different numbers of rows: \{'obs': 5, .*'rewards': 4"),
        (batch(rewards=5.0), "line 1: 'rewards' must be a column, not 5.0"),
        (batch(t=[0]), "line 1: columns have different numbers of rows: .*'t': 1"),
        (batch(terminateds=None, truncateds=None, eps_id=None), "does not say where episodes end"),
        (batch(rewards=[[1.0]] * 5), "line 1: 'rewards' must be one number per row"),
        (batch(obs="AAAA"), "line 1: column 'obs' is damaged"),
        (batch(obs="not base64!"), "line 1: column 'obs' is damaged"),
        (batch(obs=packed(Evil())), "line 1: column 'obs': the pickle asks for posix.system; only numpy"),
        (batch(obs=packed(np.array([None] * 5))), "line 1: column 'obs': .* object is not numbers"),
    ],
)
def test_wrong_lines(tmp_path: Path, line: Any, message: str) -> None:
    write(tmp_path / "a.json", line)
    with pytest.raises(DatasetError, match=rf"a.json, {message}" if message.startswith("line") else message):
        open_dataset(tmp_path, allow_pickle=True)


def test_broken_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", batch(), batch(eps_id=[3, 3, 3, 4, 4]))
    text = path.read_text()
    path.write_text(text[:-300])  # a killed run
    with pytest.warns(match=r"the last line \(2\) breaks off, as in a killed run; it was dropped"):
        assert len(open_dataset(tmp_path)) == 5
    path.write_text(text[:300] + "\n" + text)
    with pytest.raises(DatasetError, match=r"a.json, line 1 is not JSON"):
        open_dataset(tmp_path)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(DatasetError, match=r"a.json, line 1"):
        open_dataset(tmp_path)
    path.write_text("\n")
    with pytest.raises(DatasetError, match="the log has no steps"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "item",
    [
        b"",
        b"\xc1",
        msgpack.packb({"rewards": 1}),
        msgpack.packb({"rewards": {"data": [1.0], "lookback": 0, "finalized": False}}),
        msgpack.packb([1]),
    ],
)
def test_broken_episodes(tmp_path: Path, item: bytes) -> None:
    pq.write_table(pa.table({"item": [item]}), tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match=r"a.parquet, row 0: not an episode of RLlib"):
        open_dataset(tmp_path)


def test_episode_of_arrays_that_would_unpickle(tmp_path: Path) -> None:
    """`msgpack_numpy` itself would call `pickle.loads` here."""
    evil = {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": pickle.dumps(Evil())}
    buffer = {"data": evil, "lookback": 0, "finalized": True}
    state = {"id_": "a", "t_started": 0, "is_terminated": True, "is_truncated": False}
    item = msgpack.packb({**state, "rewards": buffer, "observations": buffer, "actions": buffer})
    pq.write_table(pa.table({"item": [item]}), tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match="not an episode of RLlib"):
        open_dataset(tmp_path)
    assert not Path("evil").exists()


def test_episode_of_tuples(tmp_path: Path) -> None:
    """msgpack gives tuples back as lists."""

    def buffer(data: Any) -> dict[str, Any]:
        return {"data": data, "lookback": 0, "finalized": True}

    state = {"id_": "a", "t_started": 0, "is_terminated": True, "is_truncated": False}
    observations = (np.zeros((3, 2), np.float32), np.ones((3, 1), np.float32))
    columns = {
        "observations": buffer(observations),
        "actions": buffer(np.zeros((2, 1), np.float32)),
        "rewards": buffer(np.zeros(2)),
    }
    item = msgpack.packb({**state, **columns}, default=msgpack_numpy.encode)
    pq.write_table(pa.table({"item": [item]}), tmp_path / "a.parquet")
    np.testing.assert_array_equal(open_dataset(tmp_path).observations, [[0.0, 0.0, 1.0]] * 2)


def test_steps_of_several_agents(tmp_path: Path) -> None:
    table = {
        **{"eps_id": ["a", "b"], "agent_id": ["red", "blue"], "module_id": ["p", "p"], "rewards": [0.0, 1.0]},
        **{"obs": [[0.0], [1.0]], "new_obs": [[1.0], [2.0]], "actions": [[0.0], [1.0]]},
        **{"terminateds": [False, True], "truncateds": [True, False]},
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match=r"steps of several agents \(.*red.*\): CalQL trains one policy"):
        open_dataset(tmp_path)


def test_pickle_permission_is_for_logs(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"obs": [[1.0]], "actions": [[1.0]], "rewards": [1.0], "dones": [True]}), tmp_path / "a.pq"
    )
    with pytest.raises(DatasetError, match="is no log of RLlib and holds no pickles: leave out allow_pickle"):
        open_dataset(tmp_path, allow_pickle=True)


def test_absurd_lines(tmp_path: Path) -> None:
    """Sizes and numbers that the libraries report in their own ways."""
    path = tmp_path / "log.json"
    frame = lz4.frame.compress(pickle.dumps(np.zeros((5, 1))))
    claims = frame[:6] + (10**13).to_bytes(8, "little")
    frames = (claims + bytes([checksum]) + frame[15:] for checksum in range(256))
    (claiming,) = [claim for claim in frames if _is_frame(claim)]
    write(path, batch(obs=base64.b64encode(claiming).decode()))
    with pytest.raises(DatasetError, match=r"log\.json, line 1: column 'obs' is damaged: it claims to be larger"):
        open_dataset(path, allow_pickle=True)
    path.write_text('{"type": "SampleBatch", "obs": ' + "1" * 5000 + "}\n")
    with pytest.raises(DatasetError, match=r"log\.json, line 1: Exceeds the limit"):
        open_dataset(path)
    write(path, rows(0, 3), {**rows(3, 5), "obs": [[[1.0]], [[2.0]]], "new_obs": [[[1.0]], [[2.0]]]})
    with pytest.raises(DatasetError, match=r"log\.json: steps have different columns or shapes"):
        open_dataset(path)


def _is_frame(data: bytes) -> bool:
    try:
        lz4.frame.get_frame_info(data)
    except RuntimeError:  # another checksum
        return False
    return True
