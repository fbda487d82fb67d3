"""The artifact reader takes sound files only, and says what is wrong with any other."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_tiny import tiny_manifest, tiny_onnx

from s4d_runtime.artifact import (
    Member,
    Preprocessing,
    TensorSpec,
    Thresholds,
    read_artifact,
    write_artifact,
)
from s4d_runtime.errors import (
    ArtifactError,
    ArtifactFormatError,
    ArtifactHashError,
    ArtifactMemberError,
    ArtifactStructureError,
    ManifestError,
    S4DError,
)

MODEL = b"not really a network " * 50


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "good.s4d", tiny_manifest(), {"model.onnx": MODEL})


def manifest_json(**changes) -> dict:
    digest = hashlib.sha256(MODEL).hexdigest()
    manifest = tiny_manifest(members={"model.onnx": Member(digest, len(MODEL))})
    plain = json.loads(msgspec.json.encode(manifest))
    return {**plain, **changes}


def zip_file(path: Path, members, **options) -> Path:
    """A zip with these (name, bytes) pairs, written without our checks."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def raw_artifact(path: Path, manifest: dict | bytes, model: bytes = MODEL, **options) -> Path:
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    return zip_file(path, [("manifest.json", text), ("model.onnx", model)], **options)


def test_round_trip(tmp_path):
    source = tmp_path / "calibration.json"
    source.write_bytes(b"{}" * 1000)
    manifest = tiny_manifest(model={"name": "tiny", "levels": [1, 2], "nested": {"a": None}})
    path = write_artifact(
        tmp_path / "a" / "b.s4d", manifest, {"model.onnx": MODEL, "calibration.json": source}
    )
    with read_artifact(path) as artifact:
        assert artifact.read_model() == MODEL
        assert artifact.read("calibration.json") == source.read_bytes()
        assert msgspec.structs.replace(artifact.manifest, members={}) == manifest
        with pytest.raises(ArtifactMemberError, match=r"calibration\.json"):
            artifact.read("weights.bin")
    with zipfile.ZipFile(path) as archive:
        assert all(i.compress_type == zipfile.ZIP_STORED for i in archive.infolist())
    assert [p.name for p in path.parent.iterdir()] == ["b.s4d"]


def test_same_input_same_bytes(tmp_path):
    paths = [
        write_artifact(tmp_path / f"{i}.s4d", tiny_manifest(), {"model.onnx": tiny_onnx()})
        for i in range(2)
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_failed_write_leaves_the_old_file(good):
    before = good.read_bytes()
    with pytest.raises(ArtifactError):
        write_artifact(good, tiny_manifest(), {"model.onnx": MODEL, "x.json": Path("/no/such")})
    with pytest.raises(ManifestError):
        write_artifact(good, tiny_manifest(class_names=()), {"model.onnx": MODEL})
    with pytest.raises(ArtifactMemberError):
        write_artifact(good, tiny_manifest(kind="engine"), {"model.onnx": MODEL})
    with pytest.raises(ArtifactMemberError):
        write_artifact(good, tiny_manifest(), {"model.onnx": MODEL, "../x": b""})
    assert good.read_bytes() == before and [p.name for p in good.parent.iterdir()] == ["good.s4d"]


def test_missing_folder_and_other_files(tmp_path):
    for path in (tmp_path / "none.s4d", tmp_path, tmp_path / "nul\0.s4d"):
        with pytest.raises(ArtifactError, match="cannot open"):
            read_artifact(path)
    for content in (b"", b"PK", b"hello" * 1000, b"PK\x05\x06" + bytes(18)):
        path = tmp_path / "other.s4d"
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"other\.s4d"):
            read_artifact(path)


@pytest.mark.parametrize("where", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated(good, where):
    data = good.read_bytes()
    good.write_bytes(data[: int(len(data) * where)])
    with pytest.raises(ArtifactStructureError, match="cut short"):
        read_artifact(good)


def test_altered_model(good):
    data = good.read_bytes()
    at = data.index(MODEL) + 100
    good.write_bytes(data[:at] + b"X" + data[at + 1 :])
    with pytest.raises(ArtifactHashError, match=r"model\.onnx"):
        read_artifact(good)


def test_altered_with_a_right_checksum(tmp_path):
    path = raw_artifact(tmp_path / "x.s4d", manifest_json(), MODEL[:-1] + b"!")
    with pytest.raises(ArtifactHashError, match="SHA-256"):
        read_artifact(path)
    path = raw_artifact(tmp_path / "x.s4d", manifest_json(), MODEL + b"!")
    with pytest.raises(ArtifactHashError, match="bytes"):
        read_artifact(path)


# The polynomial of zip's CRC-32 itself, lowest bit first: on zeros it leaves the checksum as it is.
SAME_CHECKSUM = int(f"{0x104C11DB7:033b}"[::-1], 2).to_bytes(5, "little")


@pytest.mark.parametrize("change", (b"!", SAME_CHECKSUM), ids=("plain", "same checksum"))
def test_changed_while_open(tmp_path, change):
    model = bytes(1 << 20)  # larger than any read buffer
    path = write_artifact(tmp_path / "x.s4d", tiny_manifest(), {"model.onnx": model})
    with read_artifact(path) as artifact:
        with path.open("r+b") as file:
            file.seek(1 << 19)
            file.write(change)
        with pytest.raises(ArtifactHashError):
            artifact.read_model()


@pytest.mark.parametrize("number", [0, 2, -1, "1", None, 1.5, True, [1], 10**30])
def test_format_number(tmp_path, number):
    path = raw_artifact(tmp_path / "x.s4d", manifest_json(format=number))
    with pytest.raises(ArtifactFormatError, match="expected artifact format 1"):
        read_artifact(path)


HOSTILE = [
    *("../evil", "/etc/passwd", "a/b", "..", ".", ".hidden", "C:\\x", "a\\b", "nul.json", "x."),
    *("model.onnx\n", "ｍodel.onnx", "a" * 200, " model", "con", "a\u202eb"),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_member_names(tmp_path, name):
    entry = [("manifest.json", json.dumps(manifest_json())), ("model.onnx", MODEL), (name, b"x")]
    path = zip_file(tmp_path / "x.s4d", entry)
    with pytest.raises(ArtifactMemberError, match="flat member names"):
        read_artifact(path)


def test_name_with_a_nul(tmp_path):
    path = zip_file(tmp_path / "x.s4d", [("modelXonnx", b"x")])
    path.write_bytes(path.read_bytes().replace(b"modelXonnx", b"model\0onnx"))
    with pytest.raises(ArtifactMemberError):
        read_artifact(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_twice_missing_and_undeclared(tmp_path):
    text = json.dumps(manifest_json())
    both = [("manifest.json", text), ("model.onnx", MODEL)]
    for members, message in (
        ([*both, ("model.onnx", MODEL)], "twice"),
        (both[:1], "declared but not there"),
        ([*both, ("extra.bin", b"")], "not declared"),
        (both[1:], "is missing"),
        ([("manifest.json", json.dumps(manifest_json(members={})))], "no member"),
    ):
        with pytest.raises(ArtifactMemberError, match=message):
            read_artifact(zip_file(tmp_path / "x.s4d", members))


def test_too_many_members(tmp_path):
    """63 members and the manifest are the most; writer and reader agree on that."""
    members = {"model.onnx": MODEL, **{f"part{i}.bin": b"" for i in range(62)}}
    path = write_artifact(tmp_path / "x.s4d", tiny_manifest(), members)
    with read_artifact(path) as artifact:
        assert len(artifact.names()) == 63
    with pytest.raises(ArtifactMemberError, match="fewer than 64"):
        write_artifact(path, tiny_manifest(), {**members, "more.bin": b""})
    text = json.dumps(manifest_json())
    crowd = [("manifest.json", text), *((f"part{i}.bin", b"") for i in range(64))]
    with pytest.raises(ArtifactStructureError, match="at most 64 members, got 65"):
        read_artifact(zip_file(tmp_path / "y.s4d", crowd))


def test_the_manifest_is_not_a_member_to_give(tmp_path):
    members = {"model.onnx": MODEL, "manifest.json": b"{}"}
    with pytest.raises(ArtifactMemberError, match="do not pass it"):
        write_artifact(tmp_path / "x.s4d", tiny_manifest(), members)
    assert not list(tmp_path.iterdir())


def test_compressed_encrypted_and_links(tmp_path):
    path = raw_artifact(tmp_path / "x.s4d", manifest_json(), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactStructureError, match="stored"):
        read_artifact(path)
    info = zipfile.ZipInfo("model.onnx")
    info.external_attr = 0o120777 << 16
    info.create_system = 3
    path = zip_file(tmp_path / "x.s4d", [("manifest.json", "{}"), (info, b"/etc/passwd")])
    with pytest.raises(ArtifactStructureError, match="regular"):
        read_artifact(path)
    path = raw_artifact(tmp_path / "x.s4d", manifest_json())
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactStructureError, match="encrypted"):
        read_artifact(path)


def test_bytes_that_belong_to_no_member(good):
    data = good.read_bytes()
    good.write_bytes(b"#!/bin/sh\n" + data)
    with pytest.raises(ArtifactStructureError):
        read_artifact(good)
    directory = data.index(b"PK\x01\x02")
    end = data.rindex(b"PK\x05\x06")
    moved = struct.pack("<L", directory + 7)
    gap = data[:directory] + b"A" * 7 + data[directory : end + 16] + moved + data[end + 20 :]
    good.write_bytes(gap)
    with pytest.raises(ArtifactStructureError, match="no member"):
        read_artifact(good)


def test_two_names_for_one_member(good):
    """The header before the bytes must agree with the directory."""
    data = good.read_bytes()
    good.write_bytes(
        data.replace(b"model.onnx", b"model.0nnx", 2).replace(b"model.0nnx", b"model.onnx", 1)
    )
    with pytest.raises(ArtifactError):
        read_artifact(good)
    at = data.index(b"PK\x03\x04", 4) + 30
    good.write_bytes(data[:at] + b"mod3l" + data[at + 5 :])
    with pytest.raises(ArtifactStructureError, match="names another"):
        read_artifact(good)


def tensor(table, name, **changes):
    return [{**t, **changes} if t["name"] == name else t for t in table]


def test_manifest_rules(tmp_path):
    plain = manifest_json()
    inputs, outputs, state = plain["inputs"], plain["outputs"], plain["state"]
    cases = {
        "not JSON": b"{",
        "not an object": b"[1, 2]",
        "not text": b"\xff\xfe\x00",
        "deep": b'{"format": 1, "model": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        "unknown field": manifest_json(colour="red"),
        "missing field": {k: v for k, v in plain.items() if k != "precision"},
        "unknown precision": manifest_json(precision="fp8"),
        "empty name": manifest_json(name=" "),
        "no classes": manifest_json(class_names=[]),
        "a class twice": manifest_json(class_names=["car", "car"]),
        "negative size": manifest_json(
            preprocessing={**plain["preprocessing"], "image_size": [-1, 88]}
        ),
        "unknown filter": manifest_json(
            preprocessing={**plain["preprocessing"], "resize_filter": "nearest"}
        ),
        "other camera count": manifest_json(
            preprocessing={**plain["preprocessing"], "camera_names": ["A"]}
        ),
        "huge shape": manifest_json(inputs=tensor(inputs, "state_feature", shape=[2**40, 2**40])),
        "huge number": manifest_json(inputs=tensor(inputs, "state_feature", shape=[10**30, 1])),
        "zero size": manifest_json(inputs=tensor(inputs, "state_feature", shape=[0, 4])),
        "too many axes": manifest_json(inputs=tensor(inputs, "state_feature", shape=[1] * 9)),
        "input twice": manifest_json(inputs=[*inputs, inputs[0]]),
        "input without state": manifest_json(
            inputs=[*inputs, {"name": "extra", "dtype": "float32", "shape": [1]}]
        ),
        "no boxes": manifest_json(outputs=[o for o in outputs if o["name"] != "boxes"]),
        "boxes of 9 columns": manifest_json(outputs=tensor(outputs, "boxes", shape=[6, 9])),
        "float images": manifest_json(inputs=tensor(inputs, "images", dtype="float32")),
        "state not mapped": manifest_json(
            state={k: v for k, v in state.items() if k != "state_anchor"}
        ),
        "state fed twice": manifest_json(state={**state, "state_anchor": "next_feature"}),
        "state of another shape": manifest_json(
            outputs=tensor(outputs, "next_anchor", shape=[6, 10])
        ),
        "state of nothing": manifest_json(state={**state, "state_x": "next_x"}),
        "interval below zero": manifest_json(
            thresholds={**plain["thresholds"], "max_time_interval": -1}
        ),
        "bad digest": manifest_json(members={"model.onnx": {"sha256": "zz", "size": 1}}),
    }
    for name, manifest in cases.items():
        with pytest.raises(ManifestError) as caught:
            read_artifact(raw_artifact(tmp_path / "x.s4d", manifest))
        assert len(str(caught.value)) < 800, name


def test_another_state_than_v3(tmp_path):
    """A model with its own state entries (v1's feature queue) is as welcome."""
    plain = tiny_manifest()
    fixed = [t for t in plain.inputs if t.name not in plain.state]
    manifest = msgspec.structs.replace(
        plain,
        inputs=(*fixed, TensorSpec("state_queue", "float16", (4, 100, 8))),
        outputs=(*plain.outputs[:4], TensorSpec("next_queue", "float16", (4, 100, 8))),
        state={"state_queue": "next_queue"},
        preprocessing=Preprocessing((32, 88), "cv2_linear", plain.preprocessing.camera_names),
        thresholds=Thresholds(max_time_interval=1.0),
    )
    path = write_artifact(tmp_path / "v1.s4d", manifest, {"model.onnx": MODEL})
    with read_artifact(path) as artifact:
        assert artifact.manifest.state == {"state_queue": "next_queue"}


def check_fuzzed(folder: Path, data: bytes, original: bytes) -> None:
    path = folder / "fuzzed.s4d"
    path.write_bytes(data)
    before = {p.name for p in folder.iterdir()}
    try:
        with read_artifact(path) as artifact:
            assert artifact.read_model() == original
    except S4DError as error:
        assert "\n" not in str(error)
    assert {p.name for p in folder.iterdir()} == before


FUZZ = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(data=st.data())
def test_fuzz_damage(good, data):
    """Truncations, flipped bits, removed, doubled and overwritten stretches."""
    content = bytearray(good.read_bytes())
    untouched = bytes(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        length = data.draw(st.integers(0, 64))
        match data.draw(st.sampled_from(["cut", "flip", "drop", "double", "write"])):
            case "cut":
                del content[at:]
            case "flip" if content:
                content[at] ^= 1 << data.draw(st.integers(0, 7))
            case "drop":
                del content[at : at + length]
            case "double":
                content[at:at] = content[at : at + length]
            case "write":
                content[at : at + length] = data.draw(st.binary(max_size=64))
    check_fuzzed(good.parent, bytes(content), MODEL)
    good.write_bytes(untouched)


def containers(inner: st.SearchStrategy) -> st.SearchStrategy:
    keys = st.sampled_from([*manifest_json(), "x"])
    return st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6)


@FUZZ
@given(
    names=st.lists(st.text(max_size=12), max_size=6),
    manifest=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        containers,
        max_leaves=12,
    ),
    merge=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_fuzz_hostile_contents(tmp_path, names, manifest, merge):
    """Any member names, any manifest."""
    if merge and isinstance(manifest, dict):
        manifest = {**manifest_json(), **manifest}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        archive.writestr("model.onnx", MODEL)
        for name in names:
            try:
                archive.writestr(name, b"x")
            except (ValueError, UnicodeError, IndexError):  # zipfile does not write it
                continue
    check_fuzzed(tmp_path, buffer.getvalue(), MODEL)
