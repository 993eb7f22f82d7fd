"""What is deployed: `model.tar.gz` with a network and the description of how to ask it. Pure.

Belongs here: the archive's format, its checks, and what goes into a description. Does not belong here: answering requests
(`execution_plan.py`, `signal_answer.py`), and choosing what is deployed (the registry, the jobs).

The archive holds exactly two files at its top, `model.onnx` and `bundle.json`: the form in which SageMaker unpacks a model to
/opt/ml/model. `bundle.json` has

    format, kind ("execution" or "signal"), model, version
    schemas     JSON schemas of request and response
    versions    of the packages that compute an answer
    hashes      sha256 of model.onnx; and of the code that makes the network's inputs: code that computes others refuses to load
    hours       trading hours of the exchange, see `hours.py`
    lineage     as registered: git commit, seed, snapshots
    and what else its kind needs

An archive is a function of its content, byte for byte: no time, no user, no compression (whose bytes differ between versions of
zlib; weights hardly shrink). So its digest is the identity of what is served, the same on every machine.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import stat
import struct
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quant_assets.serving.execution_plan import ExpectedMarket
    from quant_assets.serving.hours import ExchangeHours

FORMAT = 1
KINDS = ("execution", "signal")
ONNX, DESCRIPTION = "model.onnx", "bundle.json"
MOST_BYTES = {ONNX: 128 * 2**20, DESCRIPTION: 16 * 2**20}
# Members come with a header each, padding, and the end of the archive.
MOST_TAR_BYTES = sum(MOST_BYTES.values()) + 64 * 2**10
# Of the packages that an answer depends on.
PACKAGES = {
    "execution": ("numpy", "onnxruntime"),
    "signal": ("duckdb", "numpy", "onnxruntime", "pyarrow"),
}
# Part of the volume expected over the horizon that an order may be at most: the law of impact was measured far below.
MOST_PARTICIPATION = 0.5


class BundleError(ValueError):
    """An archive that is no bundle, or a bundle that this code cannot serve. Names it, what is wrong, and the way out."""


@dataclass(frozen=True)
class Bundle:
    """An archive that was read and found whole.

    Attributes:
        onnx: the network.
        description: content of `bundle.json`.
        digest: sha256 of the archive, hex; of a folder, that of the archive that `pack` makes of it.
    """

    onnx: bytes
    description: dict[str, Any]
    digest: str

    @property
    def kind(self) -> str:
        """'execution' or 'signal'."""
        return str(self.description["kind"])

    @property
    def model(self) -> str:
        """Name in the registry."""
        return str(self.description["model"])

    @property
    def version(self) -> int:
        """Version in the registry."""
        return int(self.description["version"])

    @property
    def served_by(self) -> str:
        """`model:version:` and 12 digits of the digest, as every answer carries it."""
        return f"{self.model}:{self.version}:{self.digest[:12]}"


# -- the archive -------------------------------------------------------------------------------------------------------


def pack(onnx: bytes, description: Mapping[str, Any]) -> bytes:
    """The archive; the same content gives the same bytes.

    Args:
        onnx: the network.
        description: of `execution_description` or `signal_description`.

    Raises:
        BundleError: the description is none, or not of this network.
    """
    try:
        text = json.dumps(dict(description), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(
            f"the description cannot be written as JSON ({error}): make it of text, finite numbers, lists and dicts"
        ) from error
    _checked(onnx, text, "the description")
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in ((DESCRIPTION, text), (ONNX, onnx)):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    return _stored(tar.getvalue())


def _stored(content: bytes) -> bytes:
    """A gzip file (RFC 1952) of stored blocks, without time and name."""
    most = 0xFFFF  # bytes of a stored block
    parts = [b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"]
    for at in range(0, len(content), most):
        block = content[at : at + most]
        last = at + most >= len(content)
        parts += [struct.pack("<BHH", last, len(block), len(block) ^ most), block]
    parts.append(struct.pack("<II", zlib.crc32(content), len(content) % 2**32))
    return b"".join(parts)


def read_bundle(path: Path) -> Bundle:
    """Read an archive, or a folder that it was unpacked to.

    Raises:
        BundleError: it cannot be read, holds something else than the two files, or they do not belong together.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _read_folder(path)
        if (size := path.stat().st_size) > MOST_TAR_BYTES:
            raise BundleError(
                f"{path} has {size:,} bytes, a bundle has at most {MOST_TAR_BYTES:,}: this is something else"
            )
        return unpack(path.read_bytes(), str(path))
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error}): give the path of a model.tar.gz, or of its folder"
        ) from error


def unpack(archive: bytes, name: str = "model.tar.gz") -> Bundle:
    """The bundle in an archive.

    Args:
        archive: bytes of a `model.tar.gz`.
        name: for messages.

    Raises:
        BundleError: as `read_bundle`.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(archive)) as file:
            tar = file.read(MOST_TAR_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise BundleError(f"{name} is no whole gzip file ({error}): {_AGAIN}") from error
    if len(tar) > MOST_TAR_BYTES:
        raise BundleError(f"{name} unpacks to more than {MOST_TAR_BYTES:,} bytes: this is no bundle")
    members = _members(tar, name)
    return Bundle(
        members[ONNX],
        _checked(members[ONNX], members[DESCRIPTION], name),
        hashlib.sha256(archive).hexdigest(),
    )


_AGAIN = "make it again with quant_assets.serving.bundle.pack"


def _members(tar: bytes, name: str) -> dict[str, bytes]:
    """The two files of a tar archive, which may hold nothing else."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as archive:
            while (member := archive.next()) is not None:
                _check_member(member.name, member.isreg() and not member.issparse(), member.size, name)
                if member.name in found:
                    raise BundleError(f"{name} holds {member.name} twice: {_AGAIN}")
                content = archive.extractfile(member)
                assert content is not None  # a regular file
                found[member.name] = content.read()
                if len(found[member.name]) != member.size:
                    raise BundleError(f"{name} ends within {member.name}: copy it again")
            rest = tar[archive.offset :]
    except (tarfile.TarError, ValueError, OSError, EOFError, UnicodeError, OverflowError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{name} is no whole tar archive ({error}): {_AGAIN}") from error
    if rest.strip(b"\0"):
        raise BundleError(f"{name} has more after its end: {_AGAIN}")
    _require_both(found, name)
    return found


def _check_member(member: str, is_file: bool, size: int, name: str) -> None:
    if member not in MOST_BYTES:
        raise BundleError(
            f"{name} holds {member!r}: a bundle is {ONNX} and {DESCRIPTION} at its top, nothing else; {_AGAIN}"
        )
    if not is_file:
        raise BundleError(f"{name}: {member} is a link or something else that is no file; {_AGAIN}")
    if size > MOST_BYTES[member]:
        raise BundleError(f"{name}: {member} has {size:,} bytes, at most {MOST_BYTES[member]:,} are allowed")


def _require_both(found: Mapping[str, bytes], name: str) -> None:
    if missing := [member for member in (ONNX, DESCRIPTION) if member not in found]:
        raise BundleError(f"{name} lacks {' and '.join(missing)}: {_AGAIN}")


def _read_folder(path: Path) -> Bundle:
    found = {}
    for file in sorted(path.iterdir()):
        about = file.lstat()
        _check_member(file.name, stat.S_ISREG(about.st_mode), about.st_size, str(path))
        found[file.name] = file.read_bytes()
    _require_both(found, str(path))
    description = _checked(found[ONNX], found[DESCRIPTION], str(path))
    return Bundle(found[ONNX], description, hashlib.sha256(pack(found[ONNX], description)).hexdigest())


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _checked(onnx: bytes, text: bytes, name: str) -> dict[str, Any]:
    """The description, once it is one and belongs to the network."""
    for member, size in ((ONNX, len(onnx)), (DESCRIPTION, len(text))):
        _check_member(member, True, size, name)
    try:
        description = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name}: {DESCRIPTION} is no JSON ({error}): {_AGAIN}") from error
    if not isinstance(description, dict):
        raise BundleError(f"{name}: {DESCRIPTION} is a {type(description).__name__}, not an object: {_AGAIN}")
    if description.get("format") != FORMAT:
        raise BundleError(
            f"{name} has format {description.get('format')!r}, this code reads {FORMAT}: serve it with the code that packed it, "
            "or pack it again"
        )
    for key, kind in (("kind", str), ("model", str), ("version", int), ("hashes", dict)):
        if type(description.get(key)) is not kind:
            raise BundleError(
                f"{name}: {DESCRIPTION} has {key} = {description.get(key)!r}, it must be {kind.__name__}"
            )
    if description["kind"] not in KINDS:
        raise BundleError(f"{name} is of kind {description['kind']!r}; there are {' and '.join(KINDS)}")
    promised, is_now = description["hashes"].get(ONNX), hashlib.sha256(onnx).hexdigest()
    if promised != is_now:
        raise BundleError(
            f"{name}: {ONNX} has sha256 {is_now}, {DESCRIPTION} says {promised}: one of them was changed; {_AGAIN}"
        )
    return description


def require_kind(bundle: Bundle, kind: str) -> None:
    """Raise `BundleError` for a bundle of another kind."""
    if bundle.kind != kind:
        raise BundleError(
            f"{bundle.served_by} is of kind {bundle.kind}, {kind} is asked for: serve it as what it is"
        )


# -- descriptions ------------------------------------------------------------------------------------------------------


def _common(
    kind: str, name: str, version: int, registered: Mapping[str, Any], hours: ExchangeHours
) -> dict[str, Any]:
    from importlib.metadata import version as installed

    return {
        "format": FORMAT,
        "kind": kind,
        "model": name,
        "version": int(version),
        "versions": {package: installed(package) for package in PACKAGES[kind]},
        "hours": hours.description(),
        "lineage": dict(registered["lineage"]),
        "windows": dict(registered["windows"]),
    }


def execution_description(
    name: str,
    version: int,
    registered: Mapping[str, Any],
    markets: Mapping[str, ExpectedMarket],
    hours: ExchangeHours,
    onnx: bytes,
) -> dict[str, Any]:
    """What `bundle.json` says of an agent that sells orders. Nothing in it depends on when it is made.

    Args:
        name, version: in the registry.
        registered: the registry's bundle of the version: environment, parameters, observation_names, action_names, lineage, ...
        markets: what is expected of a day, by ticker; these tickers can be asked for.
        hours: of the exchange, as far as orders are to be planned.
        onnx: the network.

    Raises:
        BundleError: another kind of agent, or one that sees other things than the planner computes.
    """
    # Imported here: these modules read bundles, and are imported by whoever serves only.
    import msgspec

    from quant_assets.serving import execution_plan

    try:
        agent = {
            "environment": registered["environment"],
            "observation_names": list(registered["observation_names"]),
            "action_names": list(registered["action_names"]),
            "parameters": dict(registered["parameters"]),
        }
        common = _common("execution", name, version, registered, hours)
    except (KeyError, TypeError) as error:
        raise BundleError(
            f"{name} version {version} is no agent of the registry ({type(error).__name__}: {error}): train it again "
            "(train_agents_job)"
        ) from error
    if not markets:
        raise BundleError(f"{name} version {version}: no market is expected of any ticker; give at least one")
    schema = msgspec.json.schema(execution_plan.ExecutionRequest)
    schema["$defs"]["ExecutionRequest"]["properties"]["ticker"]["enum"] = sorted(markets)
    return {
        **common,
        "schemas": {"request": schema, "response": msgspec.json.schema(execution_plan.ExecutionAnswer)},
        "hashes": {
            ONNX: hashlib.sha256(onnx).hexdigest(),
            "observation_code": execution_plan.observation_code(agent),
        },
        "agent": agent,
        "seeds": {"chosen": registered.get("chosen_seed"), "of": registered.get("seeds", [])},
        "real_market": registered.get("real_market"),
        "trained_on": list(registered.get("symbols", [])),
        "markets": {ticker: markets[ticker].description() for ticker in sorted(markets)},
        "limits": {
            "max_participation": MOST_PARTICIPATION,
            "max_horizon_minutes": execution_plan.SESSION_MINUTES,
        },
    }


def signal_description(
    name: str,
    version: int,
    registered: Mapping[str, Any],
    thresholds: tuple[float, float],
    hours: ExchangeHours,
    onnx: bytes,
) -> dict[str, Any]:
    """What `bundle.json` says of a classifier. Nothing in it depends on when it is made.

    Args:
        name, version: in the registry.
        registered: the registry's bundle of the version: inputs, symbols, outputs, tables, label, lineage, ...
        thresholds: probabilities above which the sides long and short are taken.
        hours: of the exchange, over all sessions that may be asked about.
        onnx: the network.

    Raises:
        BundleError: another kind of model, or one that was trained on other features than the code computes.
    """
    import msgspec

    from quant_assets.models.feature_sets import FEATURE_SETS
    from quant_assets.serving import signal_answer

    if name not in FEATURE_SETS:
        raise BundleError(f"no features are known of {name}; there are {', '.join(sorted(FEATURE_SETS))}")
    try:
        own = {
            "inputs": list(registered["inputs"]),
            "outputs": list(registered["outputs"]),
            "symbols": list(registered["symbols"]),
            "tables": list(registered["tables"]),
            "label": dict(registered["label"]),
            "base_rate": list(registered["base_rate"]),
        }
        trained_on = registered["lineage"]["feature_schema_hash"]
        common = _common("signal", name, version, registered, hours)
    except (KeyError, TypeError) as error:
        raise BundleError(
            f"{name} version {version} is no classifier of the registry ({type(error).__name__}: {error}): train it again "
            "(train_job)"
        ) from error
    if trained_on != (now := FEATURE_SETS[name].schema_hash):
        raise BundleError(
            f"{name} version {version} was trained on feature schema {trained_on}, the code computes {now}: train it again "
            "(train_job)"
        )
    schema = msgspec.json.schema(signal_answer.SignalRequest)
    schema["$defs"]["FeatureRow"]["properties"]["features"] = {
        "type": "object",
        "properties": {feature: {"type": "number"} for feature in own["inputs"]},
        "required": own["inputs"],
        "additionalProperties": False,
    }
    return {
        **common,
        "schemas": {
            "request": schema,
            "response": msgspec.json.schema(signal_answer.SignalAnswer),
        },
        "hashes": {ONNX: hashlib.sha256(onnx).hexdigest(), "feature_code": trained_on},
        **own,
        "thresholds": {"long": float(thresholds[0]), "short": float(thresholds[1])},
    }
