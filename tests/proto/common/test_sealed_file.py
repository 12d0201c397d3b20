import errno
import io
import json
import os
import subprocess
import zipfile

import numpy as np
import pytest
from broken_disks import damages, flipped, read_only
from edgenewton.common.files import damaged_of, previous_of, write_atomically
from edgenewton.common.sealed_file import (
    KEY,
    DamagedError,
    Kind,
    OtherKindError,
    blank_seal,
    fill,
    parse_json,
    read_checked,
    read_kept,
    seal_json,
    seal_pem,
    seal_zip,
    sealed_kind,
    sealed_pem_kind,
    tensors_metadata,
)
from safetensors.numpy import load, save

PEM = b"-----BEGIN THING-----\nAAAA\n-----END THING-----\n"


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a", "text " * 20)
    return content.getvalue()


def unzip(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read("a")


def tensors() -> bytes:
    metadata = {"step": "3", KEY: blank_seal(Kind.ROUND_WEIGHTS)}
    return fill(save({"w": np.arange(6.0), "b": np.zeros(3, np.float32)}, metadata))


def parse_ledger(data: bytes) -> dict:
    return parse_json(data, Kind.LEDGER)


SEALED = {
    "zip": (seal_zip(zipped(), Kind.MODEL), sealed_kind, unzip, Kind.MODEL),
    "json": (seal_json({"a": [1, "ü"]}, Kind.LEDGER, indent=1), sealed_kind, json.loads, Kind.LEDGER),
    "tensors": (tensors(), sealed_kind, load, Kind.ROUND_WEIGHTS),
    "pem": (seal_pem(PEM, Kind.CERTIFICATE), sealed_pem_kind, lambda data: data.index(PEM), Kind.CERTIFICATE),
}


def is_noticed(data, kind_of, parse) -> bool:
    """Whether a damaged file is refused: by its seal, or because it is none of its format any more."""
    try:
        if kind_of(data) is not None:
            return False
    except DamagedError:
        return True
    try:
        parse(data)
    except Exception:
        return True
    return False


@pytest.mark.parametrize("form", SEALED)
def test_every_flipped_bit_is_noticed(form):
    data, kind_of, parse, kind = SEALED[form]
    assert kind_of(data) == kind
    parse(data)
    assert [bit for bit in range(8 * len(data)) if not is_noticed(flipped(data, bit), kind_of, parse)] == []


@pytest.mark.parametrize("form", ["zip", "json", "tensors"])
def test_files_that_are_cut_off_or_overwritten_are_noticed(form):
    data, kind_of, parse, _ = SEALED[form]
    assert [name for name, damaged in damages(data).items() if not is_noticed(damaged, kind_of, parse)] == []


def test_other_programs_read_sealed_files(tmp_path):
    assert list(load(tensors())["w"]) == list(range(6))
    assert tensors_metadata(tensors())["step"] == "3"
    assert json.loads(SEALED["json"][0])["a"] == [1, "ü"]
    (tmp_path / "file.zip").write_bytes(SEALED["zip"][0])
    tested = subprocess.run(["python3", "-m", "zipfile", "-t", tmp_path / "file.zip"], capture_output=True, check=True)
    assert b"Done testing" in tested.stdout


def test_pem_files_may_be_joined_and_have_text_before_them():
    one, two = seal_pem(PEM, Kind.CERTIFICATE), seal_pem(PEM.replace(b"AAAA", b"BBBB"), Kind.CERTIFICATE)
    assert sealed_pem_kind(b"about these:\n" + one + b"and\n" + two) == Kind.CERTIFICATE
    assert sealed_pem_kind(PEM) is None
    for bad in (one.replace(b"AAAA", b"AAAB") + two, one + two.replace(b"BBBB", b"BBBA"), one + two[:-2], b""):
        with pytest.raises(DamagedError):
            sealed_pem_kind(bad)


# ---------------------------------------------------------------- generations


def keep(path, *numbers):
    for number in numbers:
        write_atomically(path, seal_json({"number": number}, Kind.LEDGER), keep_previous=True)


@pytest.fixture
def path(tmp_path):
    keep(tmp_path / "file.json", 1, 2)
    return tmp_path / "file.json"


def test_a_damaged_file_is_named_and_set_aside_for_the_one_before(path, caplog):
    whole = path.read_bytes()
    for damaged in damages(whole).values():
        keep(path, 1, 2)
        path.write_bytes(damaged)
        caplog.clear()
        assert read_kept(path, Kind.LEDGER, parse_ledger) == {"number": 1}
        assert damaged_of(path).read_bytes() == damaged
        assert f"{path} is damaged: " in caplog.text
        assert f"it is set aside as {path}.damaged" in caplog.text
        assert f"{path}.previous is used in place of {path}" in caplog.text
        assert read_kept(path, Kind.LEDGER, parse_ledger) == {"number": 1}  # and it stays so
    keep(path, 3)
    assert previous_of(path).exists()


def test_with_both_damaged_there_is_nothing(path, caplog):
    path.write_bytes(b"{")
    previous_of(path).write_bytes(b"")
    assert read_kept(path, Kind.LEDGER, parse_ledger) is None
    assert sorted(other.name for other in path.parent.iterdir()) == [
        "file.json.damaged",
        "file.json.previous.damaged",
    ]
    assert "file.json.previous is damaged: it is empty" in caplog.text
    assert read_kept(path, Kind.LEDGER, parse_ledger) is None


def test_a_file_that_was_removed_is_not_brought_back(path):
    path.unlink()
    assert read_kept(path, Kind.LEDGER, parse_ledger) is None
    assert previous_of(path).exists()


def test_a_whole_file_of_another_kind_is_left_alone(path):
    with pytest.raises(OtherKindError, match="it is a file of kind 'ledger', and 'model' was expected"):
        read_kept(path, Kind.MODEL, bytes)
    assert path.exists()


def test_a_file_of_an_earlier_release_is_read_and_said_to_have_no_digest(path, caplog):
    path.write_text('{"number": 7}')
    assert read_kept(path, Kind.LEDGER, parse_ledger) == {"number": 7}
    assert caplog.messages == [
        f"{path} carries no digest, as an earlier release wrote it: whether it is whole is not known"
    ]


def test_on_a_disk_that_cannot_be_written_the_one_before_is_used_too(path, monkeypatch, caplog):
    path.write_bytes(b"{")
    with monkeypatch.context() as patch:
        read_only(patch, path.parent)
        assert read_kept(path, Kind.LEDGER, parse_ledger) == {"number": 1}
    assert "it cannot be set aside: Read-only file system" in caplog.text
    assert path.read_bytes() == b"{"


def test_a_sector_that_cannot_be_read_is_damage(path, monkeypatch):
    read = type(path).read_bytes

    def fail(self):
        if self == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(self)

    monkeypatch.setattr(type(path), "read_bytes", fail)
    with pytest.raises(DamagedError, match=r"the disk cannot read it \(Input/output error\)"):
        read_checked(path, Kind.LEDGER, parse_ledger)
    assert read_kept(path, Kind.LEDGER, parse_ledger) == {"number": 1}
