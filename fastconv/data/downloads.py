"""Fetch data sets for those who are online: every file is checked against its published MD5 sum."""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60.0
_CIFAR10_MEMBERS = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt")


@dataclass(frozen=True)
class Source:
    """Where a data set comes from: base URLs, tried in order, and its files with their MD5 sums."""

    mirrors: tuple[str, ...]
    files: dict[str, str]


SOURCES = {
    "mnist": Source(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": Source(
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": Source(
        ("https://www.cs.toronto.edu/~kriz/",),
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    ),
}


def download(name: str, directory: str | os.PathLike[str], *, mirrors: tuple[str, ...] | None = None) -> Path:
    """Fetch a data set into a directory, from which :func:`mnist`, :func:`fashion_mnist` or :func:`cifar10` read it.

    Files already there with the right checksum are kept; a file arrives complete and checked, or not at all.

    Parameters
    ----------
    name : ``"mnist"`` (11 MB), ``"fashion-mnist"`` (31 MB) or ``"cifar10"`` (170 MB, unpacked as well).
    directory : made if it does not exist.
    mirrors : base URLs to try instead of the known ones.

    Returns
    -------
    the directory.

    Raises
    ------
    ValueError : an unknown name, or a file already there has another checksum.
    OSError : a file could not be fetched from any mirror, or arrived damaged; names the URLs and the reasons.
    """
    if name not in SOURCES:
        raise ValueError(f"name must be one of {', '.join(SOURCES)}, got {name!r}")
    source = SOURCES[name]
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for file, md5 in source.files.items():
        _fetch(folder / file, md5, [mirror + file for mirror in mirrors or source.mirrors])
    if name == "cifar10":
        _unpack(folder / "cifar-10-binary.tar.gz", folder / "cifar-10-batches-bin", _CIFAR10_MEMBERS)
    return folder


def _fetch(path: Path, md5: str, urls: list[str]) -> None:
    if path.exists():
        found = _md5(path)
        if found != md5:
            raise ValueError(f"{path} is there with MD5 {found}, expected {md5}; remove it to have it fetched again")
        return
    failures = []
    for url in urls:
        try:
            _fetch_from(url, path, md5)
        except OSError as error:  # urllib's errors are OSErrors
            failures.append(f"{url}: {error}")
        else:
            return
    raise OSError(
        f"{path.name} could not be fetched ({'; '.join(failures)}); without a network, put the file into {path.parent} "
        "by hand"
    )


def _fetch_from(url: str, path: Path, md5: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with (
        urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response,
        tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as part,
    ):
        try:
            while chunk := response.read(_CHUNK):
                digest.update(chunk)
                part.write(chunk)
            part.close()
            if digest.hexdigest() != md5:
                raise OSError(f"arrived with MD5 {digest.hexdigest()}, expected {md5}")
            os.replace(part.name, path)
        except BaseException:
            part.close()
            os.unlink(part.name)
            raise


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unpack(archive: Path, folder: Path, members: tuple[str, ...]) -> None:
    """Take the named members out of a tar archive; their directories inside it are ignored."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name).name
            target = folder / name
            if name not in members or target.exists() or (content := tar.extractfile(member)) is None:
                continue
            part = target.with_suffix(".part")
            part.write_bytes(content.read())
            os.replace(part, target)
