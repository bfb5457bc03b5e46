"""What files of strangers cannot do: run code, write elsewhere, fill the memory, put code into pages."""

from __future__ import annotations

import ast
import importlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from scipy.io import savemat

from rga_reid.commands import COMMANDS, main
from rga_reid.data import load_card, read_table
from rga_reid.data.cache import FOLDER, cached_images
from rga_reid.errors import InputError
from rga_reid.models.checkpoints import CONFIG_KEY
from rga_reid.retrieval import Gallery
from rga_reid.retrieval.feature_files import read_features
from rga_reid.retrieval.manifest import sealed
from tests.fuzz.harness import Outcome, run
from tests.fuzz.material import RECIPE

PACKAGE = Path(__file__).parent.parent / "rga_reid"
SEGMENT = Path("segments/000001-0")
BOUND = 200  #: MiB that a refusal may take


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module", autouse=True)
def everything_imported() -> None:
    """What a command imports on first use is none of the memory that it takes for a file."""
    for name in (*(f"commands.{command}" for command in COMMANDS), "retrieval", "training"):
        importlib.import_module(f"rga_reid.{name}")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What a bomb would leave."""
    mark = tmp_path / "unpickled"
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # it is one
    mark.unlink()
    return mark


def object_array(mark: Path) -> np.ndarray:
    return np.array([Bomb(mark)] * 3, dtype=object)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def refusal(outcome: Outcome) -> str:
    """The one line of a command that refused its input, in bounded memory."""
    assert outcome.code == 2, outcome.escaped or outcome
    assert outcome.error.startswith("rga-reid: error: ")
    assert outcome.error.count("\n") == 1
    assert outcome.mebibytes < BOUND
    assert outcome.seconds < 10
    return outcome.error


# --- nothing is unpickled ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors", "pth", "pt"])
@pytest.mark.parametrize("written", ["bare", "torch", "legacy", "state", "config"])
def test_no_checkpoint_is_unpickled(
    tmp_path: Path, tiny_market: Path, mark: Path, suffix: str, written: str
) -> None:
    file, bomb = tmp_path / f"bomb.{suffix}", Bomb(mark)
    if written == "bare":
        file.write_bytes(pickle.dumps(bomb))
    elif written in ("torch", "legacy"):
        torch.save(bomb, file, _use_new_zipfile_serialization=written == "torch")
    elif written == "state":
        torch.save({"state_dict": {"model.a": bomb}, CONFIG_KEY: {"depth": 18}}, file)
    else:
        torch.save({"state_dict": {}, CONFIG_KEY: {"depth": bomb}}, file)
    image = str(next((tiny_market / "query").iterdir()))
    for words in (
        ["verify", image, image, "--checkpoint", str(file)],
        ["test", "--checkpoint", str(file), "--data.root", str(tiny_market)],
        ["features", "--checkpoint", str(file), "--images", str(tiny_market / "query"), "--out", "o.npz"],
        ["explain", "--image", image, "--checkpoint", str(file), "--out", "o.html"],
        ["export", "--checkpoint", str(file), "--format", "safetensors", "--out", "o.safetensors"],
        ["convert", str(file), "o.safetensors"],
    ):
        assert "bomb" in refusal(run(words, tmp_path))
    assert not mark.exists()


def test_no_weights_to_train_from_are_unpickled(
    tmp_path: Path, tiny_market: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for file in (tmp_path / "own.pth", cache / "resnet18-f37072fd.pth"):
        torch.save({"conv1.weight": Bomb(mark)}, file)
    words = ["train", "--config", "recipe.yaml", "--data.root", str(tiny_market), "--out", "out"]
    assert "own.pth" in refusal(run([*words, "--model.weights", "own.pth"], tmp_path))
    assert "torch's cache" in refusal(run([*words, "--model.weights", "imagenet"], tmp_path))
    assert not mark.exists()


def test_no_run_to_resume_or_report_is_unpickled(tmp_path: Path, tiny_market: Path, mark: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "out").mkdir()
    torch.save({"state_dict": {}, "callbacks": Bomb(mark)}, tmp_path / "out" / "last.ckpt")
    words = ["train", "--config", "recipe.yaml", "--data.root", str(tiny_market), "--out", "out", "--resume"]
    assert "last.ckpt" in refusal(run(words, tmp_path))
    (tmp_path / "out" / "test.json").write_text('{"mAP": 0.5}')
    assert "last.ckpt" in refusal(run(["report", "out"], tmp_path))
    assert not mark.exists()


@pytest.mark.parametrize(
    "kind", ["features", "pids", "camids", "paths", "pids_known", "bare", "npy", "npy bare"]
)
def test_no_features_are_unpickled(tmp_path: Path, mark: Path, kind: str) -> None:
    arrays: dict[str, Any] = {
        "features": np.eye(3),
        "pids": np.arange(3),
        "camids": np.arange(3),
        "paths": np.array(["a"] * 3),
    }
    name = "f.npy" if kind.startswith("npy") else "f.npz"
    if kind.endswith("bare"):
        (tmp_path / name).write_bytes(pickle.dumps(object_array(mark)))
    elif kind == "npy":
        (tmp_path / name).write_bytes(npy(object_array(mark)))
    else:
        np.savez(tmp_path / name, **{**arrays, kind: object_array(mark)})
    (tmp_path / "f.csv").write_text("pid\n1\n2\n3\n")
    for words in (
        ["evaluate", "--query", name, "--gallery", name],
        ["calibrate", "--query", name, "--gallery", name],
        ["gallery", "build", "--features", name, "--gallery", "G"],
    ):
        assert name in refusal(run(words, tmp_path))
    assert not mark.exists()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A gallery of six images."""
    table = pd.DataFrame({"path": [f"{row}.jpg" for row in range(6)], "pid": range(6), "camid": 1})
    Gallery.build(np.eye(6, dtype=np.float32), table).save(tmp_path / "G")
    Gallery.open(tmp_path / "G").remove(pids=5)
    return tmp_path / "G"


def reseal(gallery: Path, change: Callable[[Any], object]) -> None:
    """Change a manifest and give it a new checksum, as anyone can."""
    manifest = json.loads((gallery / "manifest.json").read_text())
    change(manifest)
    manifest.pop("sha256")
    (gallery / "manifest.json").write_bytes(sealed(manifest))


def put(gallery: Path, name: str, content: bytes) -> None:
    """Another file of a segment, and a manifest that vouches for it."""
    (file,) = gallery.rglob(name)
    file.write_bytes(content)

    def change(manifest: Any) -> None:
        import hashlib

        for segment in manifest["segments"]:
            segment["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    reseal(gallery, change)


class Extension(pa.ExtensionType):
    """Of an Arrow type that older releases would have unpickled: its name is theirs."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark
        super().__init__(pa.string(), "arrow.py_extension_type")

    def __arrow_ext_serialize__(self) -> bytes:
        return pickle.dumps(Bomb(self.mark))

    @classmethod
    def __arrow_ext_deserialize__(cls, _storage: Any, _serialized: bytes) -> Any:
        raise NotImplementedError


def test_no_gallery_is_unpickled(saved: Path, mark: Path) -> None:
    vectors, table = (next(saved.rglob(name)) for name in ("vectors.npy", "table.parquet"))
    plain = table.read_bytes()
    column = pa.ExtensionArray.from_storage(Extension(mark), pa.array(["a"] * 5))
    columns = {"path": column, "pid": [1] * 5, "camid": [1] * 5, "id": range(5)}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    put(saved, "table.parquet", buffer.getvalue())
    main(["gallery", "info", "--gallery", str(saved)])  # read as texts or refused, by the release of Arrow
    put(saved, "table.parquet", plain)
    for content in (npy(object_array(mark)), pickle.dumps(object_array(mark))):
        put(saved, "vectors.npy", content)
        for action in ("info", "compact"):
            assert vectors.name in refusal(run(["gallery", action, "--gallery", str(saved)], saved.parent))
    assert not mark.exists()


def test_no_cached_image_is_unpickled(tiny_market: Path, tmp_path: Path, mark: Path) -> None:
    shutil.copytree(tiny_market, tmp_path / "set")
    paths = read_table(tmp_path / "set").path.tolist()
    expected = np.array(cached_images(paths, (32, 16), where="file", beside=tmp_path))
    (file,) = (tmp_path / FOLDER).glob("*.npy")
    for content in (npy(object_array(mark)), pickle.dumps(object_array(mark)), npy(np.zeros((2, 2)))):
        file.write_bytes(content)
        assert (cached_images(paths, (32, 16), where="file", beside=tmp_path) == expected).all()
    assert not mark.exists()


TAG = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{}']]"


def test_no_yaml_makes_objects(tmp_path: Path, tiny_market: Path, mark: Path) -> None:
    tag = TAG.format(mark)
    for text in (
        tag,
        f"model: {tag}",
        f"name: {tag}\n",
        f"base: demo\n? {tag}\n: 1\n",
        f"title: {tag}\nrecipe: demo",
    ):
        (tmp_path / "x.yaml").write_text(text)
        for words in (
            ["train", "--config", "x.yaml"],
            ["ablate", "--config", "x.yaml", "--out", "out"],
            ["data", "check", str(tiny_market), "--dataset", "x.yaml"],
        ):
            assert "x.yaml: not valid YAML" in refusal(run(words, tmp_path))
    words = [
        "train",
        "--data.root",
        str(tiny_market),
        "--out",
        "out",
        "--model.weights",
        "null",
        "--model.attention",
        tag,
    ]
    refusal(run(words, tmp_path))
    assert not mark.exists()


def test_every_place_that_loads_is_known() -> None:
    """A new call of one of these needs a test with a hostile file here, and then its line in this list."""
    known = {
        "torch.load": {"models/state_files.py"},
        "np.load": {"data/cache.py"},
        "np.memmap": {"retrieval/feature_files.py", "retrieval/segments.py"},
        "np.frombuffer": {"retrieval/feature_files.py", "retrieval/segments.py", "reports/packing.py"},
        "loadmat": {"data/mat_files.py"},
        "h5py.File": {"data/cuhk03.py"},
        "faiss.read_index": {"retrieval/segments.py"},
        "json.loads": {
            "inputs.py", "models/checkpoints.py", "retrieval/manifest.py", "retrieval/contents.py",
            "retrieval/milvus_state.py", "experiments/ablation_run.py", "experiments/trial.py",
        },
        "yaml.safe_load": {"reports/ablation_tables.py"},
        "ast.literal_eval": {"retrieval/filters.py"},
        "pd.read_csv": {"experiments/collecting.py"},
    }  # fmt: skip
    never = {
        "eval", "exec", "compile", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load",
        "yaml.full_load",
        "os.system", "pd.read_pickle", "pd.read_parquet", "json.load", "np.fromfile", "joblib.load",
        "shelve.open",
    }  # fmt: skip
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in never, f"{name}, line {node.lineno}: {called}"
            if called in known:
                assert name in known[called], f"{name}, line {node.lineno}: {called}"
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called == "torch.load":
                assert options["weights_only"] == "True"
            if called == "np.load":
                assert options["allow_pickle"] == "False"
            assert options.get("shell", "False") == "False"


# --- nothing is written elsewhere ----------------------------------------------------------------------


def everything(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that no command has business in."""
    folder = tmp_path / "outside"
    (folder / "photos").mkdir(parents=True)
    (folder / "photos" / "a.jpg").write_bytes(b"mine")
    (folder / "notes.txt").write_bytes(b"mine, too")
    return folder


CHANGES = (
    ["add", "--features", "f.npz"],
    ["remove", "--pid", "1"],
    ["compact"],
    ["build", "--features", "f.npz", "--overwrite"],
)


@pytest.mark.parametrize("words", CHANGES, ids=lambda words: words[0])
@pytest.mark.parametrize("trick", ["segments", "segment", "lock", "log", "unnamed"])
def test_a_gallery_with_links_changes_nothing_outside(
    saved: Path, outside: Path, words: list[str], trick: str
) -> None:
    features, table = np.ones((2, 6), np.float32), np.array(["n.jpg", "m.jpg"])
    np.savez(saved.parent / "f.npz", features=features, paths=table)
    if trick == "segments":
        shutil.move(saved / SEGMENT.parent, outside / "segments")
        (saved / "segments").symlink_to(outside / "segments")
        (outside / "segments" / "photos").mkdir()
        (outside / "segments" / "photos" / "b.jpg").write_bytes(b"mine")
    elif trick == "segment":
        (segment,) = (saved / "segments").iterdir()
        shutil.move(segment, outside / segment.name)
        segment.symlink_to(outside / segment.name)
    elif trick == "lock":
        (saved / "lock").unlink(missing_ok=True)
        (saved / "lock").symlink_to(outside / "new")
    elif trick == "log":
        (log,) = saved.glob("removals-*.jsonl")
        coming = saved / "removals-3.jsonl"
        shutil.move(log, outside / "log")
        coming.symlink_to(outside / "log")
        reseal(saved, lambda manifest: manifest["removals"].update(name=coming.name))
    else:
        (saved / "segments" / "elsewhere").symlink_to(outside)
    before = everything(outside)
    run(["gallery", words[0], "--gallery", str(saved), *words[1:]], saved.parent)
    assert everything(outside) == before


@pytest.mark.parametrize(
    "change",
    [
        {"segments": [{"name": "../../outside", "count": 5, "index": None, "files": {}}]},
        {"removals": {"name": "../outside/notes.txt", "bytes": 9, "sha256": "0" * 64}},
    ],
)
def test_a_manifest_names_nothing_outside(saved: Path, outside: Path, change: dict[str, Any]) -> None:
    reseal(saved, lambda manifest: manifest.update(change))
    before = everything(outside)
    for action in ("info", "verify", "compact"):
        assert "damaged manifest" in refusal(run(["gallery", action, "--gallery", str(saved)], saved.parent))
    assert everything(outside) == before


def test_a_gallery_with_changed_names_loses_nothing(saved: Path) -> None:
    """A manifest that names what is not there: what is there might be it, and stays."""
    reseal(saved, lambda manifest: manifest["segments"][0].update(name="000009-9"))
    before = everything(saved)
    assert "000009-9" in refusal(
        run(["gallery", "remove", "--gallery", str(saved), "--pid", "1"], saved.parent)
    )
    assert {**everything(saved), "lock": b""} == {**before, "lock": b""}


def test_members_of_an_archive_are_not_unpacked(tmp_path: Path, outside: Path) -> None:
    arrays = {
        "features": np.eye(3, dtype=np.float32),
        "pids": np.arange(3),
        "../outside/notes.txt": np.zeros(1),
    }
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        for name, array in arrays.items():
            archive.writestr(name if "/" in name else f"{name}.npy", npy(array))
    before = everything(outside)
    read_features(tmp_path / "f.npz")
    assert everything(outside) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz", "outside"]


def test_a_data_set_leads_no_cache_elsewhere(tiny_market: Path, tmp_path: Path, outside: Path) -> None:
    (tmp_path / FOLDER).symlink_to(outside)
    before = everything(outside)
    with pytest.raises(InputError, match="a link, expected a folder"):
        cached_images(read_table(tiny_market).path.tolist(), (32, 16), where="file", beside=tmp_path)
    assert everything(outside) == before


def test_a_protocol_names_no_picture_outside(tmp_path: Path, outside: Path) -> None:
    Image.new("RGB", (4, 8)).save(outside / "1_001_1_01.png")
    (tmp_path / "set" / "labeled").mkdir(parents=True)
    card = yaml.safe_load(Path(load_card_file("cuhk03_labeled")).read_text())
    card["pattern"] = r".*(?P<camid>[12])_\d+\.png"
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    names = np.array([["../../outside/1_001_1_01.png"]], dtype=object)
    index = {f"{split}_idx": [1] for split in ("train", "query", "gallery")}
    protocol = card["splits"]["train"]["sources"][0]["list"]
    savemat(tmp_path / "set" / protocol, {"filelist": names, "labels": [1], **index})
    with pytest.raises(InputError, match="leads outside the data set"):
        read_table(tmp_path / "set", load_card(tmp_path / "card.yaml"))


def load_card_file(name: str) -> Path:
    from rga_reid.resources import find_resource

    return find_resource("datasets", name)


def test_pictures_of_another_file_are_not_read(tmp_path: Path) -> None:
    """HDF5 can say that values, or a variable, are in any other file of the machine."""
    (tmp_path / "secret.bin").write_bytes(bytes(3 * 8 * 4))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["labeled"] = np.zeros(1)
    for trick in ("external", "link"):
        with h5py.File(tmp_path / "cuhk-03.mat", "w") as file:
            if trick == "link":
                file["labeled"] = h5py.ExternalLink("other.h5", "labeled")
            else:
                picture = file.create_dataset(
                    "p", (3, 8, 4), np.uint8, external=[(str(tmp_path / "secret.bin"), 0, 96)]
                )
                people = file.create_dataset("q", data=np.array([[picture.ref] * 10], h5py.ref_dtype))
                file.create_dataset("labeled", data=np.array([[people.ref]], h5py.ref_dtype))
        from rga_reid.data.cuhk03 import unpack

        with pytest.raises(InputError, match=r"cuhk-03\.mat: .*(another file|expected the variable)"):
            unpack(tmp_path, "labeled")
        assert not (tmp_path / "labeled").exists()


# --- nothing fills the memory --------------------------------------------------------------------------


def test_images_of_absurd_sizes(tmp_path: Path, tiny_checkpoint: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    jpeg = bytearray(buffer.getvalue())
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", 65_500, 65_500)
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + header
        + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )
    (tmp_path / "a.jpg").write_bytes(jpeg)
    (tmp_path / "a.png").write_bytes(png + b"\0\0\0\0IDAT")
    (tmp_path / "a.ppm").write_bytes(b"P6 99999999 99999999 255\n")
    for name in ("a.jpg", "a.png", "a.ppm"):
        words = ["verify", name, name, "--checkpoint", str(tiny_checkpoint)]
        assert f"{name}: image of " in refusal(run(words, tmp_path))


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


@pytest.mark.parametrize("name", ["features", "pids", "paths"])
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_that_unpack_to_much(tmp_path: Path, name: str, method: int) -> None:
    rows = 1 << 27  # half a gibibyte of zeros, in half a mebibyte
    header = headed(f"({rows}, 1)" if name == "features" else f"({rows},)", 0)
    if name == "paths":
        header = header.replace(b"<f4", b"<U1")
    with zipfile.ZipFile(tmp_path / "f.npz", "w", method) as archive:
        if name != "features":
            archive.writestr("features.npy", npy(np.eye(3)))
        with archive.open(f"{name}.npy", "w") as member:
            member.write(header)
            for _ in range(rows >> 18):
                member.write(bytes(1 << 20))
    words = ["evaluate", "--query", "f.npz", "--gallery", "f.npz"]
    assert f"array '{name}': " in refusal(run(words, tmp_path))


def test_tables_that_unpack_to_much(saved: Path) -> None:
    rows = 20_000
    long, zeros = "a" * 100_000, np.zeros(10_000_000, np.int64)
    tables = [
        (
            pa.table(
                {"path": pa.array(["a"] * rows), "pid": [1] * rows, "camid": [1] * rows, "id": range(rows)}
            ),
            5,
        ),
        (
            pa.table(
                {"path": pa.array([long] * rows).dictionary_encode(), "pid": [1] * rows, "id": range(rows)}
            ),
            rows,
        ),
        (pa.table({"path": pa.array(["a"] * 10_000_000).dictionary_encode(), "pid": zeros}), 10_000_000),
    ]
    for table, count in tables:
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="snappy")
        assert len(buffer.getvalue()) < 3_000_000
        put(saved, "table.parquet", buffer.getvalue())
        vectors = headed(f"({count}, 6)", count * 24)
        put(saved, "vectors.npy", vectors)

        def change(manifest: Any, count: int = count) -> None:
            manifest["count"] = manifest["segments"][0]["count"] = count

        reseal(saved, change)
        del vectors
        assert "table.parquet: " in refusal(run(["gallery", "info", "--gallery", str(saved)], saved.parent))
    buffer = io.BytesIO()
    pq.write_table(tables[0][0], buffer, compression="zstd")
    put(saved, "table.parquet", buffer.getvalue())
    (saved.parent / "run").mkdir()
    put(saved, "table.parquet", buffer.getvalue())


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
    for name in ("a.ckpt", "b.ckpt", "c.safetensors"):
        assert name in refusal(run(["verify", "p.png", "p.png", "--checkpoint", name], tmp_path))


def test_files_that_are_mostly_holes(
    tmp_path: Path, tiny_market: Path, tiny_checkpoint: Path, saved: Path
) -> None:
    """64 GiB that take no room on the disk: refused from their size or their first line."""
    np.save(tmp_path / "f.npy", np.eye(3))
    Image.new("RGB", (4, 8)).save(tmp_path / "p.png")
    lists = yaml.safe_dump(
        {
            "name": "l", "title": "L", "layout": "lists",
            "splits": {"train": {"sources": [{"folder": "query", "list": "holes.txt"}]}},
        }
    )  # fmt: skip
    (tmp_path / "lists.yaml").write_text(lists)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "query").symlink_to(tiny_market / "query")
    verify = ["verify", "p.png", "p.png", "--checkpoint", str(tiny_checkpoint)]
    for name, beginning, words in (
        ("own.csv", b"path,pid,camid,split\n", ["data", "check", "own.csv"]),
        ("f.csv", b"pid,camid,path\n", ["evaluate", "--query", "f.npy", "--gallery", "f.npy"]),
        ("c.json", b'{"threshold": 0.5}', [*verify, "--calibration", "c.json"]),
        ("r.yaml", b"model: {depth: 18}\n", ["train", "--config", "r.yaml"]),
        ("card.yaml", b"name: a\n", ["data", "check", str(tiny_market), "--dataset", "card.yaml"]),
        ("p.yaml", b"title: a\n", ["ablate", "--config", "p.yaml", "--out", "out"]),
        ("set/holes.txt", b"a.jpg 1\n", ["data", "check", "set", "--dataset", "lists.yaml"]),
        ("m.json", b'{"mAP": 0.5}', ["report", "m.json"]),
        ("G/manifest.json", b'{"format": "rga-reid gallery"}', ["gallery", "info", "--gallery", "G"]),
    ):
        (tmp_path / name).write_bytes(beginning)
        os.truncate(tmp_path / name, 64 << 30)
        assert Path(name).name in refusal(run(words, tmp_path))


def test_tables_without_end(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("path,pid,camid,split\n" + "none.jpg,x,1,train\n" * 150_000)
    assert "more than 100,000 problems" in refusal(run(["data", "check", "own.csv"], tmp_path))
    np.save(tmp_path / "f.npy", np.eye(3))
    (tmp_path / "f.csv").write_text("pid\n" + "1\n" * 1_000_000)
    assert "expected 3 rows" in refusal(run(["evaluate", "--query", "f.npy", "--gallery", "f.npy"], tmp_path))


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "."])
def test_what_is_no_file_is_not_waited_for(
    tmp_path: Path, tiny_market: Path, tiny_checkpoint: Path, name: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    Image.new("RGB", (4, 8)).save(tmp_path / "p.png")
    (tmp_path / "a.yaml").write_text(f"base: {name}.yaml\n")
    for suffix in ("csv", "npz", "npy", "yaml"):
        (tmp_path / f"x.{suffix}").symlink_to(tmp_path / name)
    verify = ["verify", "p.png", "p.png", "--checkpoint", str(tiny_checkpoint)]
    for words in (
        ["data", "check", "x.csv"],
        ["data", "check", str(tiny_market), "--dataset", "x.yaml"],
        ["evaluate", "--query", "x.npz", "--gallery", "x.npz"],
        ["evaluate", "--query", "x.npy", "--gallery", "x.npy"],
        ["train", "--config", "x.yaml"],
        ["ablate", "--config", "x.yaml", "--out", "o"],
        [*verify, "--calibration", name],
        ["verify", name, "p.png", "--checkpoint", str(tiny_checkpoint)],
        ["verify", "p.png", "p.png", "--checkpoint", name],
        ["convert", name, "o.safetensors"],
    ):
        refusal(run(words, tmp_path))


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        MERGES,
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
        "[" * 5000,
        "- " * 5000,
        "{a: " * 5000,
        "x: " + "9" * 5000,
    ],
)
def test_yaml_that_grows(tmp_path: Path, tiny_market: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    for words in (
        ["train", "--config", "x.yaml"],
        ["ablate", "--config", "x.yaml", "--out", "out"],
        ["data", "check", str(tiny_market), "--dataset", "x.yaml"],
    ):
        assert "x.yaml: " in refusal(run(words, tmp_path))


def test_matlab_files_that_unpack_to_much(tmp_path: Path) -> None:
    from rga_reid.data.mat_files import MOST_UNPACKED, read_mat

    def element(kind: int, data: bytes) -> bytes:
        padding = b"" if kind == 15 else bytes(-len(data) % 8)
        return struct.pack("<2I", kind, len(data)) + data + padding

    def array(kind: int, shape: tuple[int, ...], name: bytes, rest: bytes) -> bytes:
        flags, dimensions = struct.pack("<2I", kind, 0), struct.pack(f"<{len(shape)}i", *shape)
        return element(14, element(6, flags) + element(5, dimensions) + element(1, name) + rest)

    zeros = element(9, bytes(MOST_UNPACKED))
    inner = array(1, (2**30, 1), b"", b"")
    head = b"MATLAB 5.0".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    for content in (
        element(15, zlib.compress(array(6, (MOST_UNPACKED // 8, 1), b"labels", zeros))),
        array(1, (2**30, 1), b"filelist", b""),
        array(1, (1, 1), b"filelist", inner),
        array(4, (2**31 - 1, 2**31 - 1), b"filelist", b""),
        array(5, (2**30, 2**30), b"labels", b""),
    ):
        (tmp_path / "x.mat").write_bytes(head + content)
        with pytest.raises(ValueError, match=r"values in|more than|class 5"):
            read_mat(tmp_path / "x.mat", ["labels", "filelist"])
    savemat(tmp_path / "y.mat", {"labels": [1, 2], "other": {"a": 1}}, do_compression=True)
    assert list(read_mat(tmp_path / "y.mat", ["labels", "none"])) == ["labels"]


# --- nothing in a page is code -------------------------------------------------------------------------

NAMES = (
    "<script>alert(1)<", "</script><script>alert(2)</script>", "'\"><img src=x onerror=alert(3)>", "]]><!--",
    "{{7*7}}",
    "&lt;b&gt;", "$x_1$ \\frac{", "javascript:alert(4)", "\u202egpj.exe", "\\u003cscript\\u003e",
    "`${alert(5)}`",
)  # fmt: skip


class Elements(HTMLParser):
    """Tags with the names of their attributes, and the values of those."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "action", "data")]


def assert_harmless(page: str, scripts: int = 0) -> None:
    found = Elements(page)
    assert found.tags.count("script") == scripts
    assert not {"iframe", "object", "embed", "base", "form", "link"} & set(found.tags)
    assert not [name for name in found.attributes if name.startswith("on")]
    assert all(link.startswith(("data:image/", "#")) for link in found.links)
    assert "<img src=x" not in page
    assert "Content-Security-Policy" in page
    assert "49" not in found.tags


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose files have hostile names."""
    root = tmp_path_factory.mktemp("names")
    rows = []
    for number, name in enumerate(NAMES):
        file = root / f"{name.replace('/', '∕')}.png"
        other = root / "gallery" / file.name
        other.parent.mkdir(exist_ok=True)
        for path, split, camera in ((file, "query", 1), (other, "gallery", 2)):
            rows.append({"path": str(path), "pid": number, "camid": camera, "split": split})
            Image.fromarray(np.random.default_rng(number).integers(0, 255, (64, 32, 3), np.uint8)).save(path)
    pd.DataFrame(rows).to_csv(root / "set.csv", index=False)
    return root


def test_pages_of_queries_and_tests(pictures: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    files = sorted(map(str, pictures.glob("*.png")))
    features = np.random.default_rng(0).normal(size=(len(NAMES), 512)).astype(np.float32)
    gallery = tmp_path / "<script>alert(0)<"
    np.savez(tmp_path / "f.npz", features=features, paths=np.array(NAMES), pids=np.arange(len(NAMES)))
    assert main(["gallery", "build", "--features", str(tmp_path / "f.npz"), "--gallery", str(gallery)]) == 0
    model = ["--checkpoint", str(tiny_checkpoint)]
    page = tmp_path / "page.html"
    assert (
        main(
            [
                "query",
                "--gallery",
                str(gallery),
                "--image",
                *files,
                *model,
                "--top-k",
                "20",
                "--html",
                str(page),
            ]
        )
        == 0
    )
    text = page.read_text(encoding="utf-8")
    assert_harmless(text)
    assert "&lt;script&gt;" in text
    assert main(["test", *model, "--data.root", str(pictures / "set.csv"), "--html", str(page)]) == 0
    assert_harmless(page.read_text(encoding="utf-8"))


def test_page_of_relations(pictures: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Names of files, and of checkpoints with their folders: these together can spell the end of a script."""
    models = [tmp_path / folder / "script><script>alert(1).safetensors" for folder in ("<", "a")]
    for model in models:
        model.parent.mkdir()
        shutil.copy(tiny_checkpoint, model)
    files = sorted(map(str, pictures.glob("*.png")))[:4]
    words = ["explain", "--image", *files, "--checkpoint", *map(str, models)]
    assert main([*words, "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert_harmless(text, scripts=2)
    data = text.partition('id="data">')[2].partition("</script>")[0]
    assert [photo["name"] for photo in json.loads(data)["photos"]] == [Path(file).name for file in files]
    for name in ("figure.png", "figures.pdf"):
        assert main([*words[:3], "--checkpoint", str(models[0]), "--out", str(tmp_path / name)]) == 0


def test_page_of_a_report(tmp_path: Path) -> None:
    places = []
    for number, name in enumerate(NAMES):
        place = tmp_path / f"{name.replace('/', '∕')}.json"
        place.write_text(json.dumps({"mAP": 0.1 * number / 2, "rank-1": 0.5, "cmc": [0.1, 0.2, 0.3]}))
        places.append(str(place))
    words = [
        "report",
        *places,
        "--out",
        str(tmp_path / "report"),
        "--title",
        NAMES[1],
        "--baseline",
        Path(places[0]).stem,
    ]
    assert main(words) == 0
    assert_harmless((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
    markdown = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown.replace("\\<script", "")
    assert "<script" not in (tmp_path / "report" / "cmc.svg").read_text(encoding="utf-8")
