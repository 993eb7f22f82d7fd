"""Buffers: what is written is read bit for bit, and a file that is not whole is never taken for one."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quant_assets.posterior.priors import HestonParameters
from quant_assets.simulation import transitions
from quant_assets.simulation.intraday import IntradayDays, IntradayModel, iterate_days, join_days
from quant_assets.simulation.transitions import (
    BufferFileError,
    PathInfo,
    TransitionBatch,
    TransitionInfo,
    path_info,
    path_schema,
    read_paths,
    read_transitions,
    transition_info,
    transition_schema,
    write_paths,
    write_transitions,
)

POSTERIOR = {"table": "posterior.heston", "snapshot": 7_123_456_789_012_345_678, "symbol": "AAPL"}
INFO = TransitionInfo(
    environment="execution",
    observation_names=("left_pct", "time_left_pct", "spread_bps"),
    action_names=("rate_pct", "aggression"),
    posterior=POSTERIOR,
    seed=2**63 + 1,
)
PATHS = PathInfo(model=IntradayModel(minutes=20), posterior=POSTERIOR, seed=5)


def batch(rows: int, seed: int = 0) -> TransitionBatch:
    rng = np.random.default_rng(seed)
    step = np.arange(rows)
    return TransitionBatch(
        observation=rng.normal(size=(rows, 3)).astype(np.float32),
        action=rng.normal(size=(rows, 2)).astype(np.float32),
        reward=rng.normal(size=rows).astype(np.float32),
        next_observation=rng.normal(size=(rows, 3)).astype(np.float32),
        terminated=step % 10 == 9,
        draw_id=step // 30,
        episode=step // 10,
        step=step % 10,
    )


def pieces(whole: TransitionBatch, sizes: list[int]) -> Iterator[TransitionBatch]:
    start = 0
    for size in sizes:
        yield TransitionBatch(*(column[start : start + size] for column in whole))
        start += size


@pytest.fixture(scope="module")
def days() -> list[IntradayDays]:
    """30 days in chunks."""
    rng = np.random.default_rng(5)
    low, high = [-0.1, 1.0, 0.01, 0.1, -0.9, 0.01], [0.2, 9.0, 0.1, 0.8, 0.3, 0.1]
    draws = HestonParameters(*rng.uniform(low, high, (10, 6)).T)
    chunks = list(
        iterate_days(
            draws, days_per_draw=3, seed=5, mid0=50.0, model=PATHS.model, draw_ids=np.arange(10) * 7,
            memory_bytes=3 * 3 * 26 * 240,
        )
    )  # fmt: skip
    assert len(chunks) > 2
    return chunks


def resave(path: Path, change: Any) -> Path:
    """The file again, after a change of its table by somebody who knows Parquet and not the format."""
    pq.write_table(change(pq.read_table(path)), path)
    return path


def with_metadata(**values: Any) -> Any:
    """A change of the metadata; None removes."""

    def change(table: pa.Table) -> pa.Table:
        about = json.loads(table.schema.metadata[b"quant_assets"]) | values
        about = {name: value for name, value in about.items() if value is not None}
        return table.replace_schema_metadata({b"quant_assets": json.dumps(about)})

    return change


# ---------------------------------------------------------------------------- transitions


def test_transitions_come_back_bit_for_bit(tmp_path: Path) -> None:
    path, whole = tmp_path / "deep" / "er" / "t.parquet", batch(1000)
    assert write_transitions(path, [whole], INFO) == 1000
    found = read_transitions(path)
    shapes = {"observations": (3,), "next_observations": (3,), "actions": (2,), "rewards": (), "dones": ()}
    for name, rest in shapes.items():
        array = getattr(found, name)
        assert array.dtype == np.float32
        assert array.shape == (1000, 1, *rest)
        assert array.flags.c_contiguous
    assert np.array_equal(found.observations[:, 0], whole.observation)
    assert np.array_equal(found.next_observations[:, 0], whole.next_observation)
    assert np.array_equal(found.actions[:, 0], whole.action)
    assert np.array_equal(found.rewards[:, 0], whole.reward)
    assert np.array_equal(found.dones[:, 0], whole.terminated)
    for name in ("draw_id", "episode", "step"):
        assert getattr(found, name).dtype == np.int32
        assert np.array_equal(getattr(found, name), getattr(whole, name))
    assert found.info == INFO == transition_info(path)
    assert found.info.created_by.startswith("quant-assets")


def test_the_schema_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_transitions(path, [batch(5)], INFO)
    schema = pq.read_schema(path)
    assert schema.equals(transition_schema(INFO), check_metadata=True)
    assert schema.field("observation").type.list_size == 3
    assert schema.field("action").type.value_type == pa.float32()
    assert [str(schema.field(name).type) for name in ("reward", "terminated", "draw_id")] == [
        "float",
        "bool",
        "int32",
    ]
    assert not any(field.nullable for field in schema)
    about = json.loads(schema.metadata[b"quant_assets"])
    assert about["version"] == 1
    assert about["posterior"] == POSTERIOR
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_streamed_batches_make_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transitions, "TRANSITION_ROWS", 128)
    whole = batch(1000)
    write_transitions(tmp_path / "one", [whole], INFO)
    for i, sizes in enumerate(([1000], [1] * 300 + [700], [128, 0, 872], [999, 1])):
        assert write_transitions(tmp_path / str(i), pieces(whole, sizes), INFO) == 1000
        assert (tmp_path / str(i)).read_bytes() == (tmp_path / "one").read_bytes()
    groups = pq.ParquetFile(tmp_path / "one").metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [128] * 7 + [104]
    assert np.array_equal(read_transitions(tmp_path / "one").observations[:, 0], whole.observation)


def test_the_writer_holds_a_row_group_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are on disk before the last batch is made."""
    monkeypatch.setattr(transitions, "TRANSITION_ROWS", 1000)
    written = []

    def batches() -> Iterator[TransitionBatch]:
        for i in range(50):
            yield batch(1000, i)
            (partial,) = tmp_path.glob(".t.parquet.*.partial")
            written.append(partial.stat().st_size)

    write_transitions(tmp_path / "t.parquet", batches(), INFO)
    assert written[25] > 0.4 * written[-1] > 0


# ---------------------------------------------------------------------------- failing writes


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"

    def failing() -> Iterator[TransitionBatch]:
        yield batch(100_000)
        raise RuntimeError("the simulation broke")

    with pytest.raises(RuntimeError, match="the simulation broke"):
        write_transitions(path, failing(), INFO)
    assert list(tmp_path.iterdir()) == []

    write_transitions(path, [batch(10)], INFO)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="the simulation broke"):
        write_transitions(path, failing(), INFO)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_write_leaves_no_file_of_that_name(tmp_path: Path) -> None:
    program = """
import os, signal, sys
import numpy as np
from quant_assets.simulation.transitions import *
def batches():
    n = 100_000
    ints = np.zeros(n, int)
    yield TransitionBatch(np.zeros((n, 1)), np.zeros((n, 1)), np.zeros(n), np.zeros((n, 1)), ints > 0, ints, ints, ints)
    os.kill(os.getpid(), signal.SIGKILL)
write_transitions(sys.argv[1], batches(), TransitionInfo("execution", ("o",), ("a",), {}, 1))
"""
    path = tmp_path / "t.parquet"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    assert [p.suffix for p in tmp_path.iterdir()] == [".partial"]
    write_transitions(path, [batch(10)], INFO)
    assert len(read_transitions(path).step) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation": np.zeros((5, 4))}, r"batch 1: observation has shape \(5, 4\), it must be \(5, 3\)"),
        ({"action": np.zeros(5)}, r"action has shape \(5,\)"),
        ({"terminated": np.zeros(4, bool)}, r"terminated has shape \(4,\)"),
        ({"terminated": np.zeros(5)}, "terminated is float64, it must be bool"),
        ({"reward": np.array([0, 1, np.nan, 3, 4])}, "reward = nan in row 2"),
        ({"next_observation": np.full((5, 3), 1e39)}, "next_observation = inf in row 0.*finite in float32"),
        ({"draw_id": np.zeros(5)}, "draw_id must hold whole numbers.*float64"),
        ({"step": np.array([0, 1, -1, 2, 3])}, "step must hold whole numbers.*from -1 to 3"),
        ({"episode": np.full(5, 2**31)}, "episode must hold whole numbers"),
    ],
)
def test_batches_that_do_not_fit_say_why(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BufferFileError, match=message):
        write_transitions(tmp_path / "t", [batch(5), batch(5)._replace(**changes)], INFO)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    for batches in ([], [batch(0)]):
        with pytest.raises(BufferFileError, match="nothing to write"):
            write_transitions(tmp_path / "t", batches, INFO)
    assert list(tmp_path.iterdir()) == []


def test_names_of_dimensions_are_needed() -> None:
    for names in ("price", (), ("a", "a")):
        with pytest.raises(BufferFileError, match="action_names"):
            TransitionInfo("execution", ("a",), names, {}, 0)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- failing reads


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A good file."""
    path = tmp_path / "t.parquet"
    write_transitions(path, [batch(50)], INFO)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_metadata(version=2), "version 2 of the format, this program reads 1"),
        (with_metadata(version=None), "its metadata are not those of a buffer: 'version'"),
        (with_metadata(seed=None), "its metadata are not those of a buffer: .*seed"),
        (with_metadata(surprise=1), "its metadata are not those of a buffer: .*surprise"),
        (with_metadata(contents="paths"), "holds paths, wanted are transitions"),
        (lambda t: t.replace_schema_metadata(None), "no metadata 'quant_assets'"),
        (lambda t: t.drop_columns(["reward"]), "lacks the column.s. reward"),
        (
            with_metadata(observation_names=["a", "b"]),
            r"observation is fixed_size_list.*\[3\].*must be.*\[2\]",
        ),
        (
            lambda t: t.set_column(2, "reward", t["reward"].cast(pa.float64())),
            "reward is double, by the names in its metadata it must be float",
        ),
        (
            lambda t: t.set_column(2, "reward", pa.array([np.nan, *[0.0] * 49], pa.float32())),
            "reward = nan in row 0",
        ),
        (
            lambda t: t.set_column(2, "reward", pa.array([None, *[0.0] * 49], pa.float32())),
            "reward is null in rows 0 to 49",
        ),
    ],
)
def test_files_that_are_not_what_they_say(written: Path, change: Any, message: str) -> None:
    with pytest.raises(BufferFileError, match=message):
        read_transitions(resave(written, change))


def test_files_that_are_not_whole(written: Path) -> None:
    good = written.read_bytes()
    for cut in (0, 3, 100, len(good) // 2, len(good) - 1):
        written.write_bytes(good[:cut])
        with pytest.raises(BufferFileError, match="cut off, or not Parquet"):
            read_transitions(written)
    written.write_bytes(good[:300] + bytes([good[300] ^ 255]) + good[301:])
    with pytest.raises(BufferFileError, match="damaged"):
        read_transitions(written)
    with pytest.raises(BufferFileError, match="no such file"):
        read_transitions(written.with_name("other"))


# ---------------------------------------------------------------------------- paths


def test_paths_come_back_bit_for_bit(tmp_path: Path, days: list[IntradayDays]) -> None:
    whole = join_days(days)
    assert write_paths(tmp_path / "p", iter(days), PATHS) == 30
    found = read_paths(tmp_path / "p")
    for name, values in whole._asdict().items():
        if name != "parameters":
            assert getattr(found.days, name).dtype == values.dtype
            assert np.array_equal(getattr(found.days, name), values), name
    for name, values in whole.parameters._asdict().items():
        assert np.array_equal(getattr(found.days.parameters, name), values), name
    assert found.days.draw_id.tolist() == np.repeat(np.arange(10) * 7, 3).tolist()
    assert found.info == PATHS == path_info(tmp_path / "p")


def test_the_schema_of_paths(tmp_path: Path, days: list[IntradayDays]) -> None:
    write_paths(tmp_path / "p", days, PATHS)
    schema = pq.read_schema(tmp_path / "p")
    assert schema.equals(path_schema(PATHS), check_metadata=True)
    sizes = {
        name: schema.field(name).type.list_size for name in ("mid", "spread", "volume_shares", "variance")
    }
    assert sizes == {"mid": 21, "spread": 21, "volume_shares": 20, "variance": 20}
    assert json.loads(schema.metadata[b"quant_assets"])["model"] == PATHS.model.as_dict()


def test_streamed_chunks_make_the_same_file(
    tmp_path: Path, days: list[IntradayDays], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transitions, "PATH_ROWS", 8)
    write_paths(tmp_path / "one", [join_days(days)], PATHS)
    write_paths(tmp_path / "many", iter(days), PATHS)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()
    assert pq.ParquetFile(tmp_path / "one").metadata.num_row_groups == 4
    assert np.array_equal(read_paths(tmp_path / "many").days.mid, join_days(days).mid)


def test_paths_that_do_not_fit_say_why(tmp_path: Path, days: list[IntradayDays]) -> None:
    first = days[0]
    for changed, message in (
        (first._replace(mid=first.mid[:, 1:]), r"chunk 0: mid is float64 of shape"),
        (first._replace(volume_shares=first.volume_shares * 1.0), "volume_shares is float64.* must be int64"),
        (first._replace(variance=first.variance * np.nan), "variance = nan in row 0"),
        (first._replace(parameters=first.parameters._replace(rho=np.zeros(1))), r"rho is .*shape \(1,\)"),
    ):
        with pytest.raises(BufferFileError, match=message):
            write_paths(tmp_path / "p", [changed], PATHS)
    with pytest.raises(BufferFileError, match="nothing to write"):
        write_paths(tmp_path / "p", [], PATHS)
    assert list(tmp_path.iterdir()) == []


def test_one_kind_is_not_read_as_the_other(tmp_path: Path, written: Path, days: list[IntradayDays]) -> None:
    write_paths(tmp_path / "p", days, PATHS)
    with pytest.raises(BufferFileError, match="holds paths, wanted are transitions"):
        read_transitions(tmp_path / "p")
    with pytest.raises(BufferFileError, match="holds transitions, wanted are paths"):
        read_paths(written)
    with pytest.raises(BufferFileError, match="its metadata are not those of a buffer"):
        read_paths(resave(tmp_path / "p", with_metadata(model={"minutes": 20})))
