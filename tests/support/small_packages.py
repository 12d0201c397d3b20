"""Small packages in the registries' own formats: a Debian package and a wheel, with data that were made up."""

import base64
import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_EMPTY_TAR = bytes(1024)


def write_deb(path: Path, files: Mapping[str, bytes], compression: str = "xz") -> Path:
    """Write a Debian package (deb(5)) of these files; a link stands beside them, as some packages have."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{compression}") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo(f"./{next(iter(files))}.link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    parts = {"debian-binary": b"2.0\n", "control.tar": _EMPTY_TAR, f"data.tar.{compression}": data.getvalue()}
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in parts.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))
    return path


def write_wheel(folder: Path, package: str, files: Mapping[str, bytes]) -> Path:
    """Write a wheel that pip accepts."""
    info = f"{package}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
    every = dict(files) | {
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip('=')},{len(content)}"
        for name, content in every.items()
    ]
    path = folder / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in every.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]))
    return path


def fashion_files(train: int = 60, test: int = 20) -> dict[str, bytes]:
    """Return the files of Fashion-MNIST's package, with fewer images, which are noise."""
    rng = np.random.default_rng(0)
    files = {}
    for part, count in (("train", train), ("t10k", test)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        folder = "usr/share/datasets/fashion-mnist"
        files[f"{folder}/{part}-images-idx3-ubyte.gz"] = _idx(pixels)
        files[f"{folder}/{part}-labels-idx1-ubyte.gz"] = _idx(labels)
    return files


def leaves_files() -> dict[str, bytes]:
    """Return the files of OSULeaf, with fewer leaves, of which each species has its own number of lobes."""
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 427)
    files = {}
    for part, count in (("TRAIN", 48), ("TEST", 18)):
        rows = ["# made up", "@problemName OSULeaf", "@data"]
        for number in range(count):
            species = number % 6
            outline = np.sin((species + 2) * angle + rng.uniform(0, 6)) + rng.normal(0, 0.1, 427)
            rows.append(",".join(f"{value:.6f}" for value in outline) + f":{species + 1}")
        files[f"aeon/datasets/data/OSULeaf/OSULeaf_{part}.ts"] = "\n".join(rows).encode()
    return files


def _idx(array: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes(), 1)
