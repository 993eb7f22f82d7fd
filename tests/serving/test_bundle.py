"""An archive holds the two files and nothing else, is the same bytes for the same content, and is read only when it is whole."""

import gzip
import hashlib
import io
import json
import os
import string
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_assets.serving import bundle as bundle_module
from quant_assets.serving.bundle import (
    FORMAT,
    Bundle,
    BundleError,
    execution_description,
    pack,
    read_bundle,
    require_kind,
    signal_description,
    unpack,
)
from tests.serving.bundles import expected_markets, hours, registered_agent, registered_classifier

ONNX = b"a network"


def described(onnx: bytes = ONNX, **more: Any) -> dict[str, Any]:
    hashes = {"model.onnx": hashlib.sha256(onnx).hexdigest()}
    return {
        "format": FORMAT,
        "kind": "execution",
        "model": "sac_execution",
        "version": 3,
        "hashes": hashes,
        **more,
    }


def archive(members: list[tuple[tarfile.TarInfo | str, bytes]], compress: bool = True) -> bytes:
    """A tar.gz as somebody else would make it."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(made.getvalue()) if compress else made.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


DESCRIPTION = json.dumps(described()).encode()
BOTH: list[tuple[tarfile.TarInfo | str, bytes]] = [("model.onnx", ONNX), ("bundle.json", DESCRIPTION)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


# -- round trip --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    # Up to several blocks of a gzip file.
    st.binary(max_size=500) | st.integers(60_000, 200_000).map(lambda size: b"weights " * (size // 8)),
    st.dictionaries(st.text(string.ascii_lowercase, min_size=8, max_size=12), JSON, max_size=4),
)
def test_what_was_packed_comes_back(onnx: bytes, more: dict[str, Any]) -> None:
    description = described(onnx, **more)
    packed = pack(onnx, description)
    found = unpack(packed)
    assert found == Bundle(onnx, description, hashlib.sha256(packed).hexdigest())


def test_the_same_content_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(ONNX, described(a=1, b=[1.5, "ä"]))
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert pack(ONNX, dict(reversed(described(b=[1.5, "ä"], a=1).items()))) == packed
    assert pack(ONNX, described(a=1, b=[1.5, "a"])) != packed
    # Bytes of one version of the format: an archive that is packed elsewhere has this digest as well.
    assert (
        hashlib.sha256(pack(ONNX, described())).hexdigest()
        == "79efb2a99be556af4c3315b778eae3a60d5f6a3b2f4391f6a43a4134277aa337"
    )


def test_other_tools_can_open_it(tmp_path: Path) -> None:
    packed = pack(ONNX, described())
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as tar:
        assert tar.getnames() == ["bundle.json", "model.onnx"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}
        tar.extractall(tmp_path, filter="data")
    assert (tmp_path / "model.onnx").read_bytes() == ONNX
    assert json.loads((tmp_path / "bundle.json").read_text()) == described()


def test_archive_and_unpacked_folder_are_the_same_bundle(tmp_path: Path) -> None:
    packed = pack(ONNX, described(numbers=[0.1, 1e-300, 3]))
    (tmp_path / "model.tar.gz").write_bytes(packed)
    folder = tmp_path / "model"
    folder.mkdir()
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as tar:
        tar.extractall(folder, filter="data")
    found = read_bundle(tmp_path / "model.tar.gz")
    assert found == read_bundle(folder)
    assert (found.kind, found.model, found.version) == ("execution", "sac_execution", 3)
    assert found.served_by == f"sac_execution:3:{hashlib.sha256(packed).hexdigest()[:12]}"


def test_an_archive_of_another_tool_is_read_as_it_is() -> None:
    made = archive(BOTH)
    assert unpack(made) == Bundle(ONNX, described(), hashlib.sha256(made).hexdigest())


# -- archives that are refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([*BOTH, ("readme.txt", b"hello")], "holds 'readme.txt'"),
        ([*BOTH, ("model.onnx", ONNX)], "holds model.onnx twice"),
        ([("model.onnx", ONNX)], "lacks bundle.json"),
        ([], "lacks model.onnx and bundle.json"),
        ([("/model.onnx", ONNX), BOTH[1]], "holds '/model.onnx'"),
        ([("../model.onnx", ONNX), BOTH[1]], "holds '../model.onnx'"),
        ([("./model.onnx", ONNX), BOTH[1]], "holds './model.onnx'"),
        ([("code/../model.onnx", ONNX), BOTH[1]], "holds 'code/../model.onnx'"),
        ([(link("model.onnx", "/etc/passwd"), b""), BOTH[1]], "model.onnx is a link"),
        ([BOTH[1], (link("model.onnx", "bundle.json", tarfile.LNKTYPE), b"")], "model.onnx is a link"),
        ([(link("model.onnx", "", tarfile.DIRTYPE), b""), BOTH[1]], "no file"),
        ([(link("model.onnx", "", tarfile.FIFOTYPE), b""), BOTH[1]], "no file"),
        ([(link("model.onnx", "", tarfile.CHRTYPE), b""), BOTH[1]], "no file"),
        ([("model.onnx", b"another network"), BOTH[1]], "one of them was changed"),
        ([BOTH[0], ("bundle.json", b"{")], "is no JSON"),
        ([BOTH[0], ("bundle.json", b"\xff")], "is no JSON"),
        ([BOTH[0], ("bundle.json", b'{"format": NaN}')], "NaN is no JSON number"),
        ([BOTH[0], ("bundle.json", b"[" * 100_000)], "is no JSON"),
        ([BOTH[0], ("bundle.json", b"[]")], "is a list, not an object"),
        ([BOTH[0], ("bundle.json", json.dumps(described(format=2)).encode())], "has format 2"),
        ([BOTH[0], ("bundle.json", json.dumps(described(kind="oracle")).encode())], "of kind 'oracle'"),
        ([BOTH[0], ("bundle.json", json.dumps(described(version="3")).encode())], "version = '3'"),
        ([BOTH[0], ("bundle.json", json.dumps(described(version=True)).encode())], "version = True"),
        ([BOTH[0], ("bundle.json", json.dumps(described(model=None)).encode())], "model = None"),
        ([BOTH[0], ("bundle.json", json.dumps(described(hashes={})).encode())], "says None"),
    ],
)
def test_what_is_not_exactly_a_bundle_is_refused(
    members: list[tuple[tarfile.TarInfo | str, bytes]], reason: str
) -> None:
    with pytest.raises(BundleError, match=reason) as refusal:
        unpack(archive(members), "there/model.tar.gz")
    assert "there/model.tar.gz" in str(refusal.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda good: good[: len(good) // 2],
        lambda good: good[:-1],
        lambda good: good[:5],
        lambda good: b"",
        lambda good: b"not an archive",
        lambda good: good + b"more",
        lambda good: archive(BOTH, compress=False),
        lambda good: gzip.compress(b"no tar"),
        lambda good: gzip.compress(archive(BOTH, compress=False)[:700]),
        lambda good: gzip.compress(archive(BOTH, compress=False) + b"more"),
    ],
)
def test_an_archive_that_is_not_whole_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(BundleError):
        unpack(spoil(pack(ONNX, described())))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_changed_byte_goes_unseen_or_crashes(data: st.DataObject) -> None:
    """Whatever is changed, the archive is refused, or says the same (padding, names of the owner)."""
    good = pack(ONNX, described())
    at = data.draw(st.integers(0, len(good) - 1))
    changed = bytearray(good)
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack(bytes(changed))
    except BundleError:
        return
    assert (found.onnx, found.description) == (ONNX, described())
    assert found.digest != hashlib.sha256(good).hexdigest()


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_are_refused(content: bytes) -> None:
    for made in (content, gzip.compress(content)):
        with pytest.raises(BundleError):
            unpack(made)


def test_an_archive_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "MOST_TAR_BYTES", 2**20)
    bomb = gzip.compress(bytes(2**26))
    assert len(bomb) < 2**17
    with pytest.raises(BundleError, match="unpacks to more than 1,048,576 bytes"):
        unpack(bomb)


def test_files_that_are_too_large_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = pack(bytes(5000), described(bytes(5000)))
    (tmp_path / "model.tar.gz").write_bytes(made)
    monkeypatch.setitem(bundle_module.MOST_BYTES, "model.onnx", 4999)
    for refused in (lambda: unpack(made), lambda: pack(bytes(5000), described(bytes(5000)))):
        with pytest.raises(BundleError, match=r"model.onnx has 5,000 bytes, at most 4,999"):
            refused()
    monkeypatch.setattr(bundle_module, "MOST_TAR_BYTES", 1000)
    with pytest.raises(BundleError, match="a bundle has at most 1,000"):
        read_bundle(tmp_path / "model.tar.gz")


def test_a_header_that_lies_about_the_size_is_refused() -> None:
    info = tarfile.TarInfo("model.onnx")
    info.size = 2**40
    with pytest.raises(BundleError, match="at most"):
        unpack(gzip.compress(info.tobuf() + bytes(1024)))


def test_a_folder_with_more_or_with_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_bytes(DESCRIPTION)
    with pytest.raises(BundleError, match=r"lacks model.onnx"):
        read_bundle(tmp_path)
    outside = tmp_path.parent / f"{tmp_path.name}.onnx"
    outside.write_bytes(ONNX)
    os.symlink(outside, tmp_path / "model.onnx")
    with pytest.raises(BundleError, match=r"model.onnx is a link"):
        read_bundle(tmp_path)
    (tmp_path / "model.onnx").unlink()
    (tmp_path / "model.onnx").write_bytes(ONNX)
    assert read_bundle(tmp_path).onnx == ONNX
    (tmp_path / "inference.py").write_text("print('hello')")
    with pytest.raises(BundleError, match=r"holds 'inference.py'"):
        read_bundle(tmp_path)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere.tar.gz cannot be read"):
        read_bundle(tmp_path / "nowhere.tar.gz")


@pytest.mark.parametrize(
    "description",
    [
        described(b"another network"),
        described(number=float("nan")),
        described(thing=object()),
        {},
        described(kind="oracle"),
    ],
)
def test_nothing_is_packed_that_would_not_be_read(description: dict[str, Any]) -> None:
    with pytest.raises(BundleError):
        pack(ONNX, description)


def test_a_bundle_is_served_as_what_it_is() -> None:
    found = unpack(pack(ONNX, described()))
    require_kind(found, "execution")
    with pytest.raises(BundleError, match="is of kind execution, signal is asked for"):
        require_kind(found, "signal")


# -- descriptions ------------------------------------------------------------------------------------------------------


def test_the_description_of_an_agent_says_what_serving_needs() -> None:
    description = execution_description(
        "sac_execution", 7, registered_agent(), expected_markets(), hours(), ONNX
    )
    found = unpack(pack(ONNX, description)).description
    assert (found["format"], found["kind"], found["model"], found["version"]) == (
        FORMAT,
        "execution",
        "sac_execution",
        7,
    )
    assert found["hashes"]["model.onnx"] == hashlib.sha256(ONNX).hexdigest()
    assert len(found["hashes"]["observation_code"]) == 16
    assert found["lineage"] == registered_agent()["lineage"]
    assert set(found["versions"]) == {"numpy", "onnxruntime"}
    assert found["limits"] == {"max_participation": 0.5, "max_horizon_minutes": 390}
    request = found["schemas"]["request"]["$defs"]["ExecutionRequest"]
    assert request["properties"]["ticker"]["enum"] == ["AAPL", "IBM"]
    assert request["properties"]["shares"]["minimum"] == 1
    assert request["additionalProperties"] is False
    # Nothing of the day on which it was made: packed tomorrow, it is the same bundle.
    again = execution_description("sac_execution", 7, registered_agent(), expected_markets(), hours(), ONNX)
    assert pack(ONNX, again) == pack(ONNX, description)


def test_the_description_of_a_classifier_says_what_serving_needs() -> None:
    registered = registered_classifier()
    found = signal_description("mlp_technical", 2, registered, (0.4, 0.6), hours(), ONNX)
    assert found["hashes"]["feature_code"] == registered["lineage"]["feature_schema_hash"]  # type: ignore[index]
    assert found["thresholds"] == {"long": 0.4, "short": 0.6}
    assert set(found["versions"]) == {"duckdb", "numpy", "onnxruntime", "pyarrow"}
    row = found["schemas"]["request"]["$defs"]["FeatureRow"]
    assert row["properties"]["features"]["required"] == registered["inputs"]
    assert unpack(pack(ONNX, found)).kind == "signal"


@pytest.mark.parametrize("lacking", ["environment", "observation_names", "parameters", "lineage", "windows"])
def test_an_agent_that_lacks_something_is_refused(lacking: str) -> None:
    registered = {k: v for k, v in registered_agent().items() if k != lacking}
    with pytest.raises(BundleError, match=f"sac_execution version 7 is no agent .*{lacking}"):
        execution_description("sac_execution", 7, registered, expected_markets(), hours(), ONNX)


def test_an_agent_without_a_market_is_refused() -> None:
    with pytest.raises(BundleError, match="no market is expected"):
        execution_description("sac_execution", 7, registered_agent(), {}, hours(), ONNX)


def test_a_classifier_of_other_features_is_refused() -> None:
    registered = registered_classifier()
    lineage = {**registered["lineage"], "feature_schema_hash": "0" * 16}  # type: ignore[dict-item]
    with pytest.raises(
        BundleError, match="was trained on feature schema 0000000000000000, the code computes"
    ):
        signal_description("mlp_technical", 2, {**registered, "lineage": lineage}, (0.4, 0.6), hours(), ONNX)
    with pytest.raises(BundleError, match="no features are known of mlp_oracle"):
        signal_description("mlp_oracle", 2, registered, (0.4, 0.6), hours(), ONNX)
    with pytest.raises(BundleError, match="is no classifier of the registry"):
        signal_description("mlp_technical", 2, registered_agent(), (0.4, 0.6), hours(), ONNX)
