"""What promises, or unpacks to, more than there is on the disk is refused in one line, in little memory."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from rga_reid.data import cuhk03
from rga_reid.data.cuhk03 import MAX_UNPACKED, read_mat
from rga_reid.models.checkpoints import CONFIG_KEY
from tests.fuzz.harness import run
from tests.security.hostile import npy, put, refusal, reseal


def absurd_image(suffix: str) -> bytes:
    """The beginning of an image whose header promises more pixels than any may have."""
    buffer, most = io.BytesIO(), struct.pack("<I", 2**31 - 1)
    if suffix == "ppm":
        return b"P6 99999999 99999999 255\n"
    if suffix == "png":
        header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
        checksum = struct.pack(">I", zlib.crc32(b"IHDR" + header))
        return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + checksum + b"\0\0\0\0IDAT"
    if suffix == "tif":
        tags = {256: 2**31 - 1, 257: 2**31 - 1, 258: 8, 259: 1, 262: 1, 273: 8, 278: 1, 279: 1}
        entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
        return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    format_of, more = {"jpg": "JPEG", "gif": "GIF", "frame.gif": "GIF", "bmp": "BMP"}.get(suffix, "WEBP"), {}
    if format_of == "WEBP":
        more = {"lossless": suffix == "lossless.webp"}
    Image.new("RGB", (8, 8), "red").save(buffer, format_of, **more)
    content = bytearray(buffer.getvalue())
    place, size = {
        "jpg": (content.find(b"\xff\xc0") + 5, struct.pack(">HH", 65_500, 65_500)),
        "gif": (6, struct.pack("<HH", 65_535, 65_535)),
        "frame.gif": (content.find(b",\0\0\0\0\x08\0") + 5, struct.pack("<HH", 65_535, 65_535)),
        "bmp": (18, most + most),
        "webp": (content.find(b"\x9d\x01\x2a") + 3, struct.pack("<HH", 16_383, 16_383)),
        "lossless.webp": (21, struct.pack("<I", (1 << 28) - 1)),
    }[suffix]
    content[place : place + len(size)] = size
    return bytes(content)


@pytest.mark.parametrize(
    "suffix", ["jpg", "png", "ppm", "webp", "lossless.webp", "gif", "frame.gif", "bmp", "tif"]
)
def test_images_of_absurd_sizes(tmp_path: Path, tiny_checkpoint: Path, suffix: str) -> None:
    name = f"a.{suffix}"
    (tmp_path / name).write_bytes(absurd_image(suffix))
    words = ["verify", name, name, "--checkpoint", str(tiny_checkpoint)]
    assert f"{name}: image of " in refusal(run(words, tmp_path))


def test_a_manifest_whose_seal_is_empty(saved: Path) -> None:
    """An empty text stands between all bytes of another one."""
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**manifest, "more": " " * (16 << 20), "sha256": ""}))
    words = ["gallery", "info", "--gallery", str(saved)]
    assert "manifest.json: damaged or edited" in refusal(run(words, saved))


def headed(shape: str, size: int = 192) -> bytes:
    """An .npy file whose header promises a shape."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(size)


@pytest.mark.parametrize(
    "shape",
    [
        "(1000000000000, 8)",
        "(3000000000, 4)",
        "(9223372036854775807, 9223372036854775807)",
        "(4611686018427387904, 4)",
    ],
)
def test_headers_that_promise_more_than_there_is(tmp_path: Path, saved: Path, shape: str) -> None:
    (tmp_path / "f.npy").write_bytes(headed(shape))
    (tmp_path / "f.csv").write_text("pid\n1\n")
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / f"{method}.npz", "w", method) as archive:
            archive.writestr("features.npy", headed(shape))
        refusal(run(["evaluate", "--query", f"{method}.npz", "--gallery", f"{method}.npz"], tmp_path))
    refusal(run(["evaluate", "--query", "f.npy", "--gallery", "f.npy"], tmp_path))
    put(saved, "vectors.npy", headed(shape))
    assert "vectors.npy" in refusal(run(["gallery", "info", "--gallery", str(saved)], tmp_path))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_headers_that_are_long_themselves(tmp_path: Path, saved: Path, method: int) -> None:
    """NumPy reads and decodes a header before it looks how long it is."""
    length = 1 << 28
    beginning = b"\x93NUMPY\x02\x00" + struct.pack("<I", length)
    with (
        zipfile.ZipFile(tmp_path / "f.npz", "w", method) as archive,
        archive.open("features.npy", "w") as member,
    ):
        member.write(beginning)
        for _ in range(length >> 20):
            member.write(b" " * (1 << 20))
    assert "f.npz" in refusal(run(["evaluate", "--query", "f.npz", "--gallery", "f.npz"], tmp_path))
    (tmp_path / "f.csv").write_text("pid\n1\n")
    (vectors,) = saved.rglob("vectors.npy")
    for file in (tmp_path / "f.npy", vectors):
        file.write_bytes(beginning)
        os.truncate(file, length + 1000)
    reseal(saved, lambda m: m["segments"][0]["files"]["vectors.npy"].update(bytes=length + 1000))
    assert "f.npy" in refusal(run(["evaluate", "--query", "f.npy", "--gallery", "f.npy"], tmp_path))
    assert "vectors.npy" in refusal(run(["gallery", "info", "--gallery", str(saved)], tmp_path))


def test_texts_of_no_length(tmp_path: Path) -> None:
    """An array of 10¹⁴ of them has no bytes at all."""
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        archive.writestr("features.npy", npy(np.eye(3)))
        archive.writestr("paths.npy", headed("(100000000000000,)", 0).replace(b"<f4", b"<U0"))
    assert "paths" in refusal(run(["evaluate", "--query", "f.npz", "--gallery", "f.npz"], tmp_path))
    (tmp_path / "f.npy").write_bytes(headed("(100000000000000,)", 0).replace(b"<f4", b"<U0"))
    (tmp_path / "f.csv").write_text("pid\n1\n")
    assert "f.npy" in refusal(run(["evaluate", "--query", "f.npy", "--gallery", "f.npy"], tmp_path))


@pytest.mark.parametrize("name", ["features", "pids", "paths"])
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_that_unpack_to_much(tmp_path: Path, name: str, method: int) -> None:
    usual = method == zipfile.ZIP_DEFLATED
    rows = 1 << (27 if usual else 20)  # half a gibibyte of zeros; the others are not even read
    header = headed(f"({rows}, 1)" if name == "features" else f"({rows},)", 0)
    if name == "paths":
        header = header.replace(b"<f4", b"<U1")
    with zipfile.ZipFile(tmp_path / "f.npz", "w", method) as archive:
        if name != "features":
            archive.writestr("features.npy", npy(np.eye(3)), zipfile.ZIP_STORED)
        with archive.open(f"{name}.npy", "w") as member:
            member.write(header)
            for _ in range(rows >> 18):
                member.write(bytes(1 << 20))
    said = refusal(run(["evaluate", "--query", "f.npz", "--gallery", "f.npz"], tmp_path))
    assert f"array '{name}': {'' if usual else 'packed in another way'}" in said


def parquet(table: pa.Table, compression: str = "snappy") -> bytes:
    """Less than 3 MB, whatever is in it."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression=compression)
    assert len(buffer.getvalue()) < 3_000_000
    return buffer.getvalue()


MANY, LONG = 10_000_000, "a" * 100_000


@pytest.mark.parametrize(
    ("path", "rows", "count"),
    [
        (pa.array(["a"] * 20_000), 20_000, 5),  # more than the manifest says
        (pa.array([LONG] * 20_000).dictionary_encode(), 20_000, 20_000),  # a text once, for each row
        (pa.array(["a"] * MANY).dictionary_encode(), MANY, MANY),
    ],
    ids=["more", "long", "many"],
)
def test_tables_that_unpack_to_much(saved: Path, path: pa.Array, rows: int, count: int) -> None:
    table = {"path": path, "pid": np.zeros(rows, int)} | ({} if rows == MANY else {"id": range(rows)})
    put(saved, "table.parquet", parquet(pa.table(table)))
    put(saved, "vectors.npy", headed(f"({count}, 6)", count * 24))

    def change(manifest: Any) -> None:
        manifest["count"] = manifest["segments"][0]["count"] = count

    reseal(saved, change)
    assert "table.parquet: " in refusal(run(["gallery", "info", "--gallery", str(saved)], saved.parent))


@pytest.mark.parametrize("kind", ["many columns", "nulls", "one name", "bytes", "lists"])
def test_tables_of_few_bytes_and_much_in_each_row(saved: Path, kind: str) -> None:
    rows, table = 1_000_000, pq.read_table(next(saved.rglob("table.parquet")))
    if kind in ("many columns", "nulls", "one name"):
        zeros = pa.nulls(rows, pa.int8()) if kind == "nulls" else pa.array(np.zeros(rows, np.int64))
        names = ["c" if kind == "one name" else f"c{number}" for number in range(200)]
        wide = pa.table([pa.array(["a"] * rows), *[zeros] * 200], ["path", *names])
        put(saved, "table.parquet", parquet(wide))
        put(saved, "vectors.npy", headed(f"({rows}, 6)", rows * 24))

        def change(manifest: Any) -> None:
            manifest["count"] = manifest["segments"][0]["count"] = rows

        reseal(saved, change)
    else:
        long = [b"a" * 1000] if kind == "bytes" else [[1] * 100]
        put(saved, "table.parquet", parquet(table.append_column("more", pa.array(long * len(table)))))
    told = {"one name": "two columns of one name", "many columns": "more than 1,073,741,824"}
    told |= {"nulls": "more than 1,073,741,824"}
    assert told.get(kind, "column 'more': of type ") in refusal(
        run(["gallery", "info", "--gallery", str(saved)], saved.parent)
    )


def test_tables_that_are_packed_too_well(saved: Path) -> None:
    """Zstandard packs a gibibyte of one letter into some kilobytes; pandas does not use it."""
    table = pq.read_table(next(saved.rglob("table.parquet")))
    info = ["gallery", "info", "--gallery", str(saved)]
    put(saved, "table.parquet", parquet(table))
    assert run(info, saved.parent).code == 0
    put(saved, "table.parquet", parquet(table, "zstd"))
    assert "packed by ZSTD" in refusal(run(info, saved.parent))


@pytest.mark.parametrize("name", ["queries.parquet", "ranked.parquet"])
def test_tables_of_a_run_that_unpack_to_much(tmp_path: Path, name: str) -> None:
    result = {"variant": "a", "seed": 0, "metrics": {"mAP": 0.5}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    columns = ("query", "rank", "score", "pid", "camid", "AP_step", "matches")
    table = {column: np.zeros(MANY, np.int8) for column in columns}
    (tmp_path / "run" / name).write_bytes(parquet(pa.table({**table, "path": pa.array(["a"] * MANY)})))
    assert f"{name}: expected at most" in refusal(run(["report", "run"], tmp_path))


def tiny_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
    return buffer.getvalue()


def test_checkpoints_that_unpack_to_much(tmp_path: Path, tiny_checkpoint: Path) -> None:
    torch.save(
        {"state_dict": {"a": torch.zeros(1 << 26)}, CONFIG_KEY: {"depth": 18}}, tmp_path / "large.ckpt"
    )
    with (
        zipfile.ZipFile(tmp_path / "large.ckpt") as old,
        zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    (tmp_path / "large.ckpt").unlink()
    torch.save(
        {"state_dict": {"model.a": torch.zeros(1).expand(1 << 30, 1 << 10)}, CONFIG_KEY: {"depth": 18}},
        tmp_path / "b.ckpt",
    )
    content = tiny_checkpoint.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"][CONFIG_KEY] = json.dumps({"depth": 18, "attention": "rga", "size": [4096, 4096]})
    text = json.dumps(header).encode()
    (tmp_path / "c.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    Image.new("RGB", (4, 8)).save(tmp_path / "p.png")
    packed = (tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "junk.ckpt").write_bytes(packed + bytes(70_000))  # where Python no longer finds its directory
    (tmp_path / "before.ckpt").write_bytes(b"PK\x03\x04" + packed)
    (tmp_path / "two.ckpt").write_bytes(packed + tiny_archive())
    for name in ("junk.ckpt", "before.ckpt", "two.ckpt"):
        told = refusal(run(["verify", "p.png", "p.png", "--checkpoint", name], tmp_path))
        assert f"{name}: not a checkpoint of torch.save: an archive that ends in another way" in told
    for name in ("a.ckpt", "b.ckpt", "c.safetensors"):
        assert name in refusal(run(["verify", "p.png", "p.png", "--checkpoint", name], tmp_path))


PROTOCOL = "cuhk03_new_protocol_config_labeled.mat"


def test_matlab_files_that_unpack_to_much(tmp_path: Path) -> None:
    def element(kind: int, data: bytes) -> bytes:
        padding = b"" if kind == 15 else bytes(-len(data) % 8)
        return struct.pack("<2I", kind, len(data)) + data + padding

    def array(kind: int, shape: tuple[int, ...], name: bytes, rest: bytes) -> bytes:
        flags, dimensions = struct.pack("<2I", kind, 0), struct.pack(f"<{len(shape)}i", *shape)
        return element(14, element(6, flags) + element(5, dimensions) + element(1, name) + rest)

    def packed(content: bytes) -> bytes:
        return element(15, zlib.compress(content))

    def filled(kind: int, rows: int, name: bytes, rest: bytes) -> bytes:
        return packed(array(kind, (rows, 1), name, rest))

    zeros = element(9, bytes(MAX_UNPACKED))
    inner = array(1, (2**30, 1), b"", b"")
    head = b"MATLAB 5.0".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    protocol, check = tmp_path / "set" / PROTOCOL, ["data", "check", "set", "--dataset", "cuhk03_labeled"]
    protocol.parent.mkdir()
    for content in (
        element(15, zlib.compress(array(6, (MAX_UNPACKED // 8, 1), b"labels", zeros))),
        array(1, (2**30, 1), b"filelist", b""),
        array(1, (1, 1), b"filelist", inner),
        array(4, (2**31 - 1, 2**31 - 1), b"filelist", b""),
        array(5, (2**30, 2**30), b"labels", b""),
        filled(1, MAX_UNPACKED // 8 - 100, b"filelist", element(14, b"") * (MAX_UNPACKED // 8 - 100)),
        filled(6, 1 << 25, b"labels", element(9, bytes(1 << 28))),
    ):
        (tmp_path / "x.mat").write_bytes(head + content)
        with pytest.raises(ValueError, match=r"values in|more than|class 5"):
            read_mat(tmp_path / "x.mat", ["labels", "filelist"])
        protocol.write_bytes(head + content)
        assert "expected the protocol of CUHK03" in refusal(run(check, tmp_path))
    text, room = array(4, (1, 1), b"", element(16, b"a")), MAX_UNPACKED - 200
    for content, told in (  # as much as there may be, of which SciPy makes more
        (filled(9, room, b"labels", element(2, bytes(room))), "expected the variable filelist"),
        (packed(array(4, (room // 2, 2), b"labels", element(16, b"a" * room))), "expected the variable"),
        (filled(1, room // len(text), b"filelist", text * (room // len(text))), "expected the variable"),
    ):
        protocol.write_bytes(head + content)
        assert told in refusal(run(check, tmp_path))
    savemat(tmp_path / "y.mat", {"labels": [1, 2], "other": {"a": 1}}, do_compression=True)
    assert list(read_mat(tmp_path / "y.mat", ["labels", "none"])) == ["labels"]


@pytest.fixture
def pictures(tmp_path: Path) -> Iterator[h5py.File]:
    """An empty ``cuhk-03.mat``, beside a protocol that is right."""
    (tmp_path / "set").mkdir()
    index = {f"{split}_idx": [1] for split in ("train", "query", "gallery")}
    names = np.array([["1_001_1_01.png"]], dtype=object)
    savemat(tmp_path / "set" / PROTOCOL, {"filelist": names, "labels": [1], **index})
    with h5py.File(tmp_path / "set" / "cuhk-03.mat", "w") as file:
        yield file


def told_of(pictures: h5py.File, people: h5py.Dataset, pairs: int = 1) -> str:
    """What ``data check`` says once ``people`` are those of each pair; nothing is left half unpacked."""
    pictures.create_dataset("labeled", data=np.array([[people.ref] * pairs], h5py.ref_dtype))
    file = Path(pictures.filename)
    pictures.close()
    assert file.stat().st_size < 16 << 20
    told = refusal(run(["data", "check", "set", "--dataset", "cuhk03_labeled"], file.parent.parent))
    assert sorted(path.name for path in file.parent.iterdir()) == ["cuhk-03.mat", PROTOCOL]
    return told


def cells(pictures: h5py.File, picture: h5py.Dataset, identities: int = 1) -> h5py.Dataset:
    return pictures.create_dataset("people", data=np.array([[picture.ref] * identities] * 10, h5py.ref_dtype))


@pytest.mark.parametrize(("identities", "pairs"), [(1000, 400), (400_000, 1)])
def test_cells_that_lead_to_one_place(pictures: h5py.File, identities: int, pairs: int) -> None:
    """A reference takes eight bytes, and many pairs can share theirs."""
    empty = pictures.create_dataset("empty", data=np.zeros(2, np.uint64))
    if pairs == 1:
        people = pictures.create_dataset("people", (10, identities), h5py.ref_dtype)  # none of them written
    else:
        people = cells(pictures, empty, identities)
    assert "more than 100,000 cells" in told_of(pictures, people, pairs)


def test_one_picture_in_many_cells(pictures: h5py.File, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuhk03, "_MOST_BYTES", 9 * 96)
    picture = pictures.create_dataset("picture", data=np.zeros((3, 8, 4), np.uint8))
    assert "pictures of more than 864 bytes" in told_of(pictures, cells(pictures, picture))


ZEROS = 1 << 29  #: bytes that pack to half a megabyte


def packed_zeros() -> bytes:
    packer = zlib.compressobj()
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(ZEROS >> 20)) + packer.flush()


@pytest.mark.parametrize(
    ("shape", "kind", "chunks", "packed", "told"),
    [
        ((3, 8000, 8000), "u8", None, None, "a picture of uint64"),
        ((3, 8001, 8000), "u1", None, None, "expected at most 192,000,000 bytes"),
        ((200_000_000,), "u1", None, None, "no picture in 'labeled'"),  # an empty cell, which nobody reads
        ((3, 8, 4), "u1", (1, 1 << 14, 1 << 15), "gzip", "chunks of 536,870,912 bytes"),
        ((3, 8, 4), "u1", (3, 8, 4), "gzip", "a chunk that unpacks to more than its 96 bytes"),
        ((3, 1000, 1000), "u1", (1, 1, 10), None, "300,000 chunks"),
        ((3, 8, 4), "u1", (3, 8, 4), "lzf", "packed in another way"),
    ],
    ids=["numbers", "pixels", "empty", "chunk", "overfull", "chunks", "packed"],
)
def test_pictures_in_hdf5_that_unpack_to_much(
    pictures: h5py.File, shape: tuple[int, ...], kind: str, chunks: Any, packed: str | None, told: str
) -> None:
    more = {"maxshape": [None] * len(shape)} if chunks else {}
    picture = pictures.create_dataset("p", shape, kind, chunks=chunks, compression=packed, **more)
    if packed == "gzip":
        picture.id.write_direct_chunk((0, 0, 0), packed_zeros())
    assert told in told_of(pictures, cells(pictures, picture))


def test_cells_in_chunks_that_unpack_to_much(pictures: h5py.File) -> None:
    people = pictures.create_dataset("p", (1, 10), h5py.ref_dtype, chunks=(1, 10), compression="gzip")
    people.id.write_direct_chunk((0, 0), packed_zeros())
    assert "a chunk that unpacks to more than its 80 bytes" in told_of(pictures, people)
