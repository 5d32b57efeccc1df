"""Readers, splits, batches and downloads; downloads from files and a server on this machine."""

import functools
import gzip
import hashlib
import http.server
import io
import os
import sys
import tarfile
import threading

import numpy as np
import pytest

from fastconv import data
from tests import fake_cupy
from tests.support import require

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array):
    header = bytes([0, 0, CODES[array.dtype.str[1:]], array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + np.asarray(array, array.dtype.newbyteorder(">")).tobytes()


def write_pair(folder, part, images, labels, suffix=""):
    pack = gzip.compress if suffix == ".gz" else bytes
    (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx_bytes(images)))
    (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(labels)))


IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5) * 4
LABELS = np.array([7, 0, 9], np.uint8)


# --- IDX ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (0, 5)])
def test_idx_goes_round(tmp_path, shape, dtype, compress):
    array = (np.arange(np.prod(shape, dtype=int)).reshape(shape) * 3 - 7).astype(dtype)
    path = tmp_path / "x"
    path.write_bytes(compress(idx_bytes(array)))
    found = data.idx(path)
    assert (found.dtype, found.shape) == (np.dtype(dtype), shape)
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, array)
    assert found.flags.writeable
    np.testing.assert_array_equal(data.idx(str(path)), array)


GOOD = idx_bytes(LABELS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file: it has 0 bytes"),
        (b"\0\0\x08", "it has 3 bytes, fewer than its 4-byte magic"),
        (b"\x89PNG" + bytes(50), "not an IDX file: it starts with 89 50 4e 47"),
        (b"\0\0\x0a\x01" + bytes(8), r"starts with 00 00 0a 01, where 00 00, an element type \(0x08, 0x09"),
        (b"\0\0\x08\x03" + bytes(8), "cut off inside the header, which should list 3 sizes"),
        (GOOD[:-1], r"cut off: shape \(3,\) of uint8 needs 3 bytes, 2 are there"),
        (GOOD + b"\0", r"bytes follow the 3 of its shape \(3,\)"),
        (b"\0\0\x0e\x03" + b"\xff" * 12 + b"abc", r"needs \d{20,} bytes, 3 are there"),
        (gzip.compress(GOOD)[:-9], "the gzip stream is damaged or cut off"),
        (gzip.compress(GOOD)[:-8] + bytes(8), "the gzip stream is damaged or cut off"),
        (gzip.compress(GOOD)[:10] + b"\xff" * 20, "the gzip stream is damaged or cut off"),
        (gzip.compress(GOOD[:-1]), "cut off: shape"),
        (b"\x1f\x8b\0\0", "the gzip stream is damaged or cut off"),
    ],
)
def test_damaged_idx_files_are_described(tmp_path, content, message):
    path = tmp_path / "labels-idx1"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"labels-idx1: .*{message}"):
        data.idx(path)


# --- MNIST and Fashion-MNIST -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("read", [data.mnist, data.fashion_mnist])
def test_mnist_directory(tmp_path, suffix, read):
    write_pair(tmp_path, "train", IMAGES, LABELS, suffix)
    write_pair(tmp_path, "t10k", IMAGES[:2], LABELS[:2], suffix)
    train, test = read(tmp_path)
    assert (train.x.shape, train.x.dtype, train.y.dtype) == ((3, 1, 4, 5), np.float32, np.int64)
    np.testing.assert_array_equal(train.y, LABELS)
    np.testing.assert_allclose(train.x[:, 0], IMAGES / 255, rtol=1e-6)
    assert len(test.x) == len(test.y) == 2
    with pytest.raises(ValueError, match="both a training and a test part exist"):
        read(tmp_path).only()


def test_white_is_one(tmp_path):
    write_pair(tmp_path, "train", np.full((1, 2, 2), 255, np.uint8), LABELS[:1])
    assert data.mnist(tmp_path).train.x.max() == 1


@pytest.mark.parametrize(("part", "missing"), [("train", "test"), ("t10k", "train")])
def test_one_pair_is_enough(tmp_path, part, missing):
    write_pair(tmp_path, part, IMAGES, LABELS)
    found = data.mnist(str(tmp_path))
    assert getattr(found, missing) is None
    np.testing.assert_array_equal(found.only().y, LABELS)


def test_the_dotted_spelling_serves(tmp_path):
    write_pair(tmp_path, "t10k", IMAGES, LABELS, ".gz")
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert len(data.mnist(tmp_path).test.y) == 3


def test_wrong_mnist_directories_are_described(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
        data.mnist(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no IDX files; needed are train-images-idx3-ubyte and"):
        data.mnist(tmp_path)
    write_pair(tmp_path, "train", IMAGES, LABELS)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte: its partner train-labels-idx1-ubyte \(or"):
        data.mnist(tmp_path)
    write_pair(tmp_path, "train", IMAGES, LABELS[:2])
    with pytest.raises(ValueError, match=r"has 3 images and .*labels-idx1-ubyte 2 labels"):
        data.mnist(tmp_path)
    write_pair(tmp_path, "train", LABELS, LABELS)
    with pytest.raises(ValueError, match="images must be 3-D uint8, these are 1-D uint8"):
        data.mnist(tmp_path)
    write_pair(tmp_path, "train", IMAGES, LABELS.astype(np.int32))
    with pytest.raises(ValueError, match="labels must be 1-D uint8, these are 1-D int32"):
        data.mnist(tmp_path)


@pytest.mark.skipif(not os.environ.get("FASTCONV_DATA"), reason="needs FASTCONV_DATA, a directory of MNIST's IDX files")
def test_the_real_mnist():
    parts = [part for part in data.mnist(os.environ["FASTCONV_DATA"]) if part is not None]
    for part in parts:
        assert part.x.shape == (len(part.y), 1, 28, 28)
        assert (part.x.min(), part.x.max()) == (0, 1)
        assert set(part.y) == set(range(10))


# --- CIFAR-10 ----------------------------------------------------------------------------------------------------


def cifar_records(labels):
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    rows = [bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True)]
    return b"".join(rows), images


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-bin"])
def test_cifar10_directory(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    content, images = cifar_records([3, 9])
    for name in ("data_batch_1.bin", "data_batch_4.bin", "test_batch.bin"):
        (tmp_path / folder / name).write_bytes(content)
    train, test = data.cifar10(tmp_path)
    assert train.x.shape == (4, 3, 32, 32)
    assert train.y.tolist() == [3, 9, 3, 9]
    np.testing.assert_allclose(test.x, images / 255, rtol=1e-6)
    assert len(data.CIFAR10_CLASSES) == len(data.FASHION_CLASSES) == len(data.DIGIT_CLASSES) == 10


def test_wrong_cifar10_files_are_described(tmp_path):
    with pytest.raises(FileNotFoundError, match="no CIFAR-10 files"):
        data.cifar10(tmp_path)
    path = tmp_path / "test_batch.bin"
    content, _ = cifar_records([3, 10])
    for wrong, message in (
        (content, "label 10 in record 1"),
        (content[:-1], "records of 3073 bytes, this one has 6145"),
        (b"", "this one has 0 bytes"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=rf"test_batch\.bin: .*{message}"):
            data.cifar10(tmp_path)


# --- the embedded digits -----------------------------------------------------------------------------------------


def test_digits_are_split_by_class_and_seed():
    require("sklearn")
    train, test = data.digits()
    assert (train.x.shape, train.x.dtype, train.y.dtype) == ((1437, 1, 8, 8), np.float32, np.int64)
    assert (train.x.min(), train.x.max(), len(test.y)) == (0, 1, 360)
    shares = np.bincount(test.y) / np.bincount(np.concatenate([train.y, test.y]))
    assert abs(shares - 360 / 1797).max() < 1 / 170
    together = {image.tobytes() for image in np.concatenate([train.x, test.x])}
    assert len(together) == 1797
    again, other = data.digits(), data.digits(seed=1)
    np.testing.assert_array_equal(again.test.x, test.x)
    assert (other.test.x != test.x).any()
    assert len(data.digits(test_size=97).test.y) == 97
    for wrong in (0, 1797):
        with pytest.raises(ValueError, match=f"test_size must be between 1 and 1796, got {wrong}"):
            data.digits(test_size=wrong)


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"digits\(\) needs sklearn.*fastconv\[examples\]"):
        data.digits()


# --- splits and batches ------------------------------------------------------------------------------------------

X, Y = np.arange(20.0).reshape(10, 2), np.arange(10)


def test_split_is_a_seeded_permutation():
    a, b = data.split(X, Y, sizes=(6, 3), seed=4)
    assert (a.x.shape, b.x.shape) == ((6, 2), (3, 2))
    assert len({*a.y, *b.y}) == 9
    for part in (a, b):
        np.testing.assert_array_equal(part.x, X[part.y])
    np.testing.assert_array_equal(data.split(X, Y, sizes=(6, 3), seed=4)[1].y, b.y)
    assert (data.split(X, Y, sizes=(6, 3), seed=5)[0].y != a.y).any()
    assert len(data.split(X, Y, sizes=(2, 2, 6))) == 3
    for sizes, message in (
        ((8, 3), r"sizes \(8, 3\) need 11 samples, there are 10"),
        ((8, 0), "sizes must be at least 1 each"),
        ((), "sizes must be at least 1 each"),
    ):
        with pytest.raises(ValueError, match=message):
            data.split(X, Y, sizes=sizes)
    with pytest.raises(ValueError, match="got 9 samples and 10 labels"):
        data.split(X[:9], Y, sizes=(1, 1))


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [4, 4, 2]), (True, [4, 4])])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_cover_the_samples(shuffle, drop_last, sizes):
    found = data.batches(X, Y, 4, shuffle=shuffle, seed=0, drop_last=drop_last)
    passes = [list(found) for _ in range(2)]
    for one in passes:
        assert [len(batch.y) for batch in one] == sizes
        assert len(found) == len(sizes)
        for x, y in one:
            np.testing.assert_array_equal(x, X[y])
        assert len({*np.concatenate([y for _, y in one])}) == sum(sizes)
    assert (passes[0][0].y.tolist() == passes[1][0].y.tolist()) is not shuffle


def test_batches_are_decided_by_the_seed():
    def order(seed):
        return np.concatenate([y for _, y in data.batches(X, Y, 3, shuffle=True, seed=seed)]).tolist()

    assert order((1, 2)) == order((1, 2)) == order([1, 2])
    assert order((1, 2)) != order((1, 3))
    assert order(np.random.default_rng(5)) == order(5)


def test_batches_of_odd_sizes():
    assert [len(y) for _, y in data.batches(X, Y, 10)] == [10]
    assert [len(y) for _, y in data.batches(X, Y, 99, shuffle=True)] == [10]
    assert list(data.batches(X, Y, 99, drop_last=True)) == []
    assert list(data.batches(X[:0], Y[:0], 4, shuffle=True)) == []
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        data.batches(X, Y, 0)
    with pytest.raises(ValueError, match="got 10 samples and 9 labels"):
        data.batches(X, Y[:9], 4)


def test_batches_stay_in_their_arrays_module(monkeypatch):
    cupy = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for x, y in data.batches(cupy.asarray(X), Y, 4, shuffle=True, seed=0):
        assert type(x) is cupy.ndarray
        np.testing.assert_array_equal(x.get(), X[y])


# --- downloads ---------------------------------------------------------------------------------------------------


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A directory with two files, made the known data set "mnist"."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    files = {"a.gz": b"first" * 1000, "b.gz": b"second"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    source = data.Source((folder.as_uri() + "/",), sums)
    monkeypatch.setitem(data.SOURCES, "mnist", source)
    return folder


def test_download_checks_and_keeps(tmp_path, mirror):
    target = tmp_path / "deep" / "down"
    assert data.download("mnist", target) == target
    assert sorted(path.name for path in target.iterdir()) == ["a.gz", "b.gz"]
    assert (target / "a.gz").read_bytes() == b"first" * 1000
    (mirror / "a.gz").unlink()
    (target / "b.gz").unlink()
    data.download("mnist", target)  # a.gz is there, b.gz comes again
    (target / "a.gz").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"a\.gz is there with MD5 .*remove it to have it fetched again"):
        data.download("mnist", target)
    assert (target / "a.gz").read_bytes() == b"mine"
    with pytest.raises(ValueError, match="name must be one of mnist, fashion-mnist, cifar10, got 'imagenet'"):
        data.download("imagenet", target)


def test_download_tries_mirrors_in_order(tmp_path, mirror):
    target = tmp_path / "here"
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.gz").write_bytes(b"tampered")
    missing, good = (tmp_path / "none").as_uri() + "/", mirror.as_uri() + "/"
    data.download("mnist", target, mirrors=(missing, bad.as_uri() + "/", good))
    assert len(list(target.iterdir())) == 2
    with pytest.raises(
        OSError, match=r"a\.gz could not be fetched .*none/a\.gz: .*; .*bad/a\.gz: arrived with MD5"
    ) as e:
        data.download("mnist", tmp_path / "there", mirrors=(missing, bad.as_uri() + "/"))
    assert "by hand" in str(e.value)
    assert list((tmp_path / "there").iterdir()) == []


def test_download_over_http(tmp_path, mirror):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=mirror)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        data.download("mnist", tmp_path / "here", mirrors=(url,))
        with pytest.raises(OSError, match=r"none/a\.gz: HTTP Error 404"):
            data.download("mnist", tmp_path / "there", mirrors=(f"{url}none/",))
        server.shutdown()
    assert (tmp_path / "here" / "b.gz").read_bytes() == b"second"


def test_cifar10_is_unpacked(tmp_path, monkeypatch):
    content, _ = cifar_records([1, 2])
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("cifar-10-batches-bin/test_batch.bin", "../../data_batch_1.bin", "evil.sh"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    source = data.Source((tmp_path.as_uri() + "/",), {"cifar-10-binary.tar.gz": md5})
    monkeypatch.setitem(data.SOURCES, "cifar10", source)
    target = data.download("cifar10", tmp_path / "deep" / "here")
    assert sorted(p.name for p in (target / "cifar-10-batches-bin").iterdir()) == ["data_batch_1.bin", "test_batch.bin"]
    assert not (tmp_path / "data_batch_1.bin").exists()
    assert data.cifar10(target).test.y.tolist() == [1, 2]


def test_known_sources_are_complete():
    assert set(data.SOURCES) == {"mnist", "fashion-mnist", "cifar10"}
    for source in data.SOURCES.values():
        assert all(url.startswith("http") and url.endswith("/") for url in source.mirrors)
        assert all(len(md5) == 32 and int(md5, 16) for md5 in source.files.values())
