"""Two kinds of files for agents: transitions, and the simulated days that transitions come from.

Belongs here: the schemas, writers and readers of both. Does not belong here: days themselves (`intraday.py`), what an
observation or a reward means (`environments`).

A *transition buffer* has one row per step of an episode; a *path buffer* has one row per simulated day. Both name in
every row the posterior draw that it happened under, so that an agent that samples rows samples the uncertainty of the
parameters as well. Both are Parquet with fixed-size lists, and say in their schema's metadata (key `quant_assets`, JSON)
what they are, the version of this format, and where they come from.

Writers stream: rows go out in row groups of a fixed size, whatever the sizes of what comes in, so that the bytes of a
file do not depend on how the work was cut. A file has a temporary name (hidden, ending in `.partial`) until it is whole:
under its own name there is never a half one. Readers fill arrays row group by row group, without a Python loop over
rows, and raise `BufferFileError` for a file that is not what it says.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from quant_assets.posterior.priors import HestonParameters
from quant_assets.simulation.intraday import IntradayDays, IntradayModel

FORMAT_VERSION = 1
METADATA_KEY = b"quant_assets"
TRANSITION_ROWS = 65_536  # of a row group; 4 MB at an observation of 6 numbers
PATH_ROWS = 256  # of a row group; 4 MB at 390 minutes


class BufferFileError(ValueError):
    """A buffer that cannot be written or read. The message names the file or column and what is wrong with it."""


def _creator() -> str:
    try:
        return f"quant-assets {version('quant-assets')}"
    except PackageNotFoundError:
        return "quant-assets"


@dataclass(frozen=True)
class TransitionInfo:
    """What a transition buffer says of itself.

    Attributes:
        environment: `execution`, `market_making`.
        observation_names, action_names: of each dimension, in order, with units.
        posterior: what identifies the posterior: table, snapshot, symbol; any JSON.
        seed: of the simulation.
        created_by: program and version.
    """

    environment: str
    observation_names: tuple[str, ...]
    action_names: tuple[str, ...]
    posterior: Mapping[str, Any]
    seed: int
    created_by: str = field(default_factory=_creator)

    def __post_init__(self) -> None:
        for name in ("observation_names", "action_names"):
            values = getattr(self, name)
            if isinstance(values, str) or not values or len(set(values)) < len(values):
                raise BufferFileError(
                    f"{name} = {values!r}: one name per dimension, each different, is needed"
                )
            object.__setattr__(self, name, tuple(values))


@dataclass(frozen=True)
class PathInfo:
    """What a path buffer says of itself.

    Attributes:
        model: the session's shapes; its `minutes` are the length of the lists.
        posterior: what identifies the posterior: table, snapshot, symbol; any JSON.
        seed: of the simulation.
        created_by: program and version.
    """

    model: IntradayModel
    posterior: Mapping[str, Any]
    seed: int
    created_by: str = field(default_factory=_creator)


class TransitionBatch(NamedTuple):
    """Some transitions on their way into a file, n of them.

    Attributes:
        observation, next_observation: shape (n, observation dimensions), finite in float32.
        action: shape (n, action dimensions), finite in float32.
        reward: shape (n,), finite in float32.
        terminated: bool, shape (n,).
        draw_id, episode, step: whole numbers from 0 to 2**31 - 1, shape (n,): the posterior draw of the episode's market,
            the episode within the file, the step within the episode.
    """

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_observation: np.ndarray
    terminated: np.ndarray
    draw_id: np.ndarray
    episode: np.ndarray
    step: np.ndarray


class Transitions(NamedTuple):
    """A transition buffer as the arrays of Stable-Baselines3's `ReplayBuffer` with one environment; C-contiguous.

    To load: `buffer.observations[:n] = transitions.observations`, likewise the other four, then `buffer.pos = n`
    (or 0 and `buffer.full = True` where n is its size). No episode is cut short, so its `timeouts` stay 0.

    Attributes:
        observations, next_observations: float32, shape (n, 1, observation dimensions).
        actions: float32, shape (n, 1, action dimensions).
        rewards, dones: float32, shape (n, 1); a 1 in `dones` is a terminated episode.
        draw_id, episode, step: int32, shape (n,).
        info: what the file says of itself.
    """

    observations: np.ndarray
    next_observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    dones: np.ndarray
    draw_id: np.ndarray
    episode: np.ndarray
    step: np.ndarray
    info: TransitionInfo


class Paths(NamedTuple):
    """A path buffer: the days, and what the file says of itself."""

    days: IntradayDays
    info: PathInfo


# -- transition buffers ------------------------------------------------------------------------------------------------


def transition_schema(info: TransitionInfo) -> pa.Schema:
    """Columns of a transition buffer; no value is null."""
    observation, action = len(info.observation_names), len(info.action_names)
    return _schema(
        {
            "observation": _list(pa.float32(), observation),
            "action": _list(pa.float32(), action),
            "reward": pa.float32(),
            "next_observation": _list(pa.float32(), observation),
            "terminated": pa.bool_(),
            "draw_id": pa.int32(),
            "episode": pa.int32(),
            "step": pa.int32(),
        },
        {"contents": "transitions", **asdict(info)},
    )


def write_transitions(path: Path | str, batches: Iterable[TransitionBatch], info: TransitionInfo) -> int:
    """Transitions into one Parquet file, replaced whole; memory is that of a batch and a row group.

    Args:
        path: where the file will be; its folder is made.
        batches: as they come, of any sizes; consumed once.
        info: what the file will say of itself.

    Returns:
        The number of rows.

    Raises:
        BufferFileError: a batch has wrong dimensions, a number that float32 cannot hold, or ids out of range; there is
            no row. Nothing is left then, and a file that was there stays.
    """
    schema = transition_schema(info)
    tables = (_transition_table(batch, schema, number) for number, batch in enumerate(batches))
    return _write(Path(path), tables, schema, TRANSITION_ROWS)


def read_transitions(path: Path | str) -> Transitions:
    """A transition buffer as arrays.

    Raises:
        BufferFileError: the file is missing, cut off, of another kind or version, its columns are not those of its
            metadata, or a value is null or not finite.
    """
    file, info = _open_transitions(Path(path))
    arrays = _read(Path(path), file, transition_schema(info), TRANSITION_ROWS)
    return Transitions(
        observations=arrays["observation"][:, None, :],
        next_observations=arrays["next_observation"][:, None, :],
        actions=arrays["action"][:, None, :],
        rewards=arrays["reward"][:, None],
        dones=arrays["terminated"].astype(np.float32)[:, None],
        draw_id=arrays["draw_id"],
        episode=arrays["episode"],
        step=arrays["step"],
        info=info,
    )


def transition_info(path: Path | str) -> TransitionInfo:
    """What a transition buffer says of itself, without reading its rows. Raises as `read_transitions`."""
    return _open_transitions(Path(path))[1]


def _open_transitions(path: Path) -> tuple[Any, TransitionInfo]:
    file, about = _open(path, "transitions")
    with _complaints(path):
        info = TransitionInfo(**about)
    return file, info


def _transition_table(batch: TransitionBatch, schema: pa.Schema, number: int) -> pa.Table:
    """A batch with the types of the schema, or an error that says which column of which batch."""
    rows = len(batch.reward)
    columns = []
    for name, values in zip(TransitionBatch._fields, batch, strict=True):
        kind, values = schema.field(name).type, np.asarray(values)
        shape = (rows, kind.list_size) if pa.types.is_fixed_size_list(kind) else (rows,)
        if values.shape != shape:
            raise BufferFileError(f"batch {number}: {name} has shape {values.shape}, it must be {shape}")
        if pa.types.is_boolean(kind):
            if values.dtype != np.bool_:
                raise BufferFileError(f"batch {number}: {name} is {values.dtype}, it must be bool")
        elif pa.types.is_int32(kind):
            if values.dtype.kind not in "iu" or (rows and (values.min() < 0 or values.max() >= 2**31)):
                raise BufferFileError(
                    f"batch {number}: {name} must hold whole numbers from 0 to 2**31 - 1, got {values.dtype}"
                    + (f" from {values.min()} to {values.max()}" if rows else "")
                )
            values = values.astype(np.int32)
        else:
            with np.errstate(over="ignore"):
                values = np.ascontiguousarray(values, dtype=np.float32)
            _finite(f"batch {number}: {name}", values, BufferFileError)
        columns.append(_arrow(values, kind))
    return pa.Table.from_arrays(columns, schema=schema)


# -- path buffers ------------------------------------------------------------------------------------------------------


def path_schema(info: PathInfo) -> pa.Schema:
    """Columns of a path buffer, as `IntradayDays`; no value is null."""
    minutes = info.model.minutes
    return _schema(
        {
            "draw_id": pa.int32(),
            "mid": _list(pa.float64(), minutes + 1),
            "spread": _list(pa.float64(), minutes + 1),
            "volume_shares": _list(pa.int64(), minutes),
            "expected_volume_shares": _list(pa.float64(), minutes),
            "variance": _list(pa.float64(), minutes),
            **dict.fromkeys(HestonParameters._fields, pa.float64()),
        },
        {"contents": "paths", **asdict(info)},
    )


def write_paths(path: Path | str, chunks: Iterable[IntradayDays], info: PathInfo) -> int:
    """Simulated days into one Parquet file, replaced whole; memory is that of a chunk and a row group.

    Args:
        path: where the file will be; its folder is made.
        chunks: what `iterate_days` yields, or days in a list of one.
        info: what the file will say of itself.

    Returns:
        The number of days.

    Raises:
        BufferFileError: a chunk has wrong dimensions or a number that is not finite; there is no day. Nothing is left
            then, and a file that was there stays.
    """
    schema = path_schema(info)
    tables = (_path_table(chunk, schema, number) for number, chunk in enumerate(chunks))
    return _write(Path(path), tables, schema, PATH_ROWS)


def read_paths(path: Path | str) -> Paths:
    """A path buffer as the days that were written.

    Raises:
        BufferFileError: as `read_transitions`.
    """
    file, info = _open_paths(Path(path))
    arrays = _read(Path(path), file, path_schema(info), PATH_ROWS)
    parameters = HestonParameters(*(arrays.pop(name) for name in HestonParameters._fields))
    return Paths(IntradayDays(**arrays, parameters=parameters), info)


def path_info(path: Path | str) -> PathInfo:
    """What a path buffer says of itself, without reading its rows. Raises as `read_paths`."""
    return _open_paths(Path(path))[1]


def _open_paths(path: Path) -> tuple[Any, PathInfo]:
    file, about = _open(path, "paths")
    with _complaints(path):
        info = PathInfo(IntradayModel.from_dict(about.pop("model")), **about)
    return file, info


def _path_table(days: IntradayDays, schema: pa.Schema, number: int) -> pa.Table:
    """Days with the types of the schema, or an error that says which column of which chunk."""
    rows = len(days.draw_id)
    columns = []
    for name, values in {**days._asdict(), **days.parameters._asdict()}.items():
        if name == "parameters":
            continue
        kind = schema.field(name).type
        shape = (rows, kind.list_size) if pa.types.is_fixed_size_list(kind) else (rows,)
        wanted = np.dtype((kind.value_type if len(shape) == 2 else kind).to_pandas_dtype())
        if values.shape != shape or values.dtype != wanted:
            raise BufferFileError(
                f"chunk {number}: {name} is {values.dtype} of shape {values.shape}, it must be {wanted} of shape {shape}"
            )
        if wanted.kind == "f":
            _finite(f"chunk {number}: {name}", values, BufferFileError)
        columns.append(_arrow(np.ascontiguousarray(values), kind))
    return pa.Table.from_arrays(columns, schema=schema)


# -- both --------------------------------------------------------------------------------------------------------------


def _list(kind: pa.DataType, size: int) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False), size)


def _schema(columns: dict[str, pa.DataType], about: dict[str, Any]) -> pa.Schema:
    """Columns that are never null, and the metadata."""
    text = json.dumps({"version": FORMAT_VERSION, **about}, sort_keys=True, allow_nan=False)
    return pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in columns.items()],
        metadata={METADATA_KEY: text.encode()},
    )


def _arrow(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind.value_type), type=kind)
    return pa.array(values, kind)


def _finite(name: str, values: np.ndarray, error: type[ValueError]) -> None:
    if not np.isfinite(values).all():
        at = np.argwhere(~np.isfinite(values))[0]
        raise error(
            f"{name} = {values[tuple(at)]} in row {at[0]}: every number must be finite in {values.dtype}"
        )


def _write(path: Path, tables: Iterable[pa.Table], schema: pa.Schema, group_rows: int) -> int:
    """Row groups of `group_rows` into a temporary file, which then takes the name."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    # The bytes of floats differ most in the last places: kept apart, the first places compress.
    apart = [
        f"{column.name}.list.element" if pa.types.is_fixed_size_list(column.type) else column.name
        for column in schema
        if pa.types.is_floating(getattr(column.type, "value_type", column.type))
    ]
    rows = 0
    try:
        with (
            open(temporary, "wb") as sink,
            pq.ParquetWriter(
                sink,
                schema,
                compression="zstd",
                use_dictionary=False,
                use_byte_stream_split=apart,
                write_statistics=False,
                write_page_checksum=True,
            ) as writer,
        ):
            for group in _regrouped(tables, group_rows):
                writer.write_table(group, row_group_size=group_rows)
                rows += group.num_rows
            if not rows:
                raise BufferFileError(f"{path}: there is nothing to write; an empty buffer is of no use")
            writer.close()
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return rows


def _regrouped(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows` rows; the last may have fewer."""
    waiting: list[pa.Table] = []
    held = 0
    for table in tables:
        waiting.append(table)
        held += table.num_rows
        while held >= rows:
            together = pa.concat_tables(waiting)
            yield together.slice(0, rows).combine_chunks()
            held -= rows
            waiting = [together.slice(rows)] if held else []
    if held:
        yield pa.concat_tables(waiting).combine_chunks()


@contextlib.contextmanager
def _complaints(path: Path) -> Iterator[None]:
    """Metadata that lack something are an error about the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise BufferFileError(f"{path}: its metadata are not those of a buffer: {error}") from error


def _open(path: Path, contents: str) -> tuple[Any, dict[str, Any]]:
    """The Parquet file and its metadata, if it is a buffer of that kind and of this version."""
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise BufferFileError(f"{path}: no such file; materialize the asset that writes it") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise BufferFileError(f"{path}: cut off, or not Parquet: {error}; write it again") from error
    text = (file.schema_arrow.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise BufferFileError(f"{path}: no metadata {METADATA_KEY.decode()!r}; this is not a buffer of ours")
    with _complaints(path):
        about = dict(json.loads(text))
        found, kind = about.pop("version"), about.pop("contents")
    if found != FORMAT_VERSION:
        raise BufferFileError(
            f"{path}: version {found} of the format, this program reads {FORMAT_VERSION}; write it again"
        )
    if kind != contents:
        raise BufferFileError(f"{path}: holds {kind}, wanted are {contents}")
    return file, about


def _read(path: Path, file: Any, schema: pa.Schema, group_rows: int) -> dict[str, np.ndarray]:
    """Every column as one contiguous array, lists as rows; filled by `group_rows` rows."""
    found = file.schema_arrow
    if missing := [name for name in schema.names if name not in found.names]:
        raise BufferFileError(
            f"{path}: lacks the column(s) {', '.join(missing)}; has {', '.join(found.names)}"
        )
    for column in schema:
        if (kind := found.field(column.name).type) != column.type:
            raise BufferFileError(
                f"{path}: {column.name} is {kind}, by the names in its metadata it must be {column.type}"
            )
    rows = file.metadata.num_rows
    arrays = {}
    for column in schema:
        is_list = pa.types.is_fixed_size_list(column.type)
        shape = (rows, column.type.list_size) if is_list else (rows,)
        kind = column.type.value_type if is_list else column.type
        arrays[column.name] = np.empty(shape, np.dtype(kind.to_pandas_dtype()))
    start = 0
    try:
        for batch in file.iter_batches(batch_size=group_rows, columns=schema.names):
            stop = start + batch.num_rows
            for name, array in arrays.items():
                column = batch.column(name)
                values = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
                if column.null_count or values.null_count:
                    raise BufferFileError(f"{path}: {name} is null in rows {start} to {stop - 1}")
                array[start:stop] = values.to_numpy(zero_copy_only=False).reshape(-1, *array.shape[1:])
            start = stop
    except (pa.ArrowInvalid, OSError) as error:
        raise BufferFileError(f"{path}: damaged: {error}; write it again") from error
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            _finite(f"{path}: {name}", array, BufferFileError)
    return arrays
