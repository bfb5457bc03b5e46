"""No file is unpickled, whatever it is called and wherever a command reads it."""

from __future__ import annotations

import ast
import builtins
import io
import json
import pickle
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from rga_reid.commands import main
from rga_reid.data import read_table
from rga_reid.data.cache import FOLDER, cached_images
from rga_reid.models import build_model, load_model
from rga_reid.models.checkpoints import CONFIG_KEY, DATA_KEY
from rga_reid.training.module import ReIDModule
from tests.security.hostile import Bomb, Run, npy, put, refusal
from tests.security.samples import RECIPE

PACKAGE = Path(__file__).parents[2] / "rga_reid"


def object_array(mark: Path) -> np.ndarray:
    return np.array([Bomb(mark)] * 3, dtype=object)


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors", "pth", "pt"])
@pytest.mark.parametrize("written", ["bare", "torch", "legacy", "state", "config"])
def test_no_checkpoint_is_unpickled(
    tmp_path: Path, tiny_market: Path, mark: Path, suffix: str, written: str, run: Run
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


@pytest.mark.parametrize(
    "attention",
    [
        "evil.X",
        {"class_path": "rga_reid.training.module.ReIDModule", "init_args": {"attention": "evil.X"}},
        {"class_path": "rga_reid.training.ReIDModule", "init_args": {"attention": {"class_path": "evil.X"}}},
        {"class_path": f"{__name__}.ReIDModule", "init_args": {"attention": "evil.X"}},
        {"class_path": "rga_reid.models.build.nn.Sequential"},
    ],
    ids=["module", "trainer", "its package", "by another's name", "elsewhere"],
)
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_no_checkpoint_imports_what_it_likes(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, attention: Any, suffix: str, run: Run
) -> None:
    """Also where the current folder is searched for modules, as in a notebook."""
    assert ReIDModule.__module__ == "rga_reid.training.module"  # this module has it, too
    (tmp_path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = {"depth": 18, "attention": attention}
    if suffix == "ckpt":
        torch.save({"state_dict": {}, CONFIG_KEY: config}, tmp_path / "evil.ckpt")
    else:
        metadata = {CONFIG_KEY: json.dumps(config)}
        save_file({"a": torch.zeros(1)}, tmp_path / "evil.safetensors", metadata=metadata)
    Image.new("RGB", (4, 8)).save(tmp_path / "p.png")
    words = ["verify", "p.png", "p.png", "--checkpoint", f"evil.{suffix}"]
    assert f"evil.{suffix}: attention " in refusal(run(words, tmp_path))
    assert not mark.exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize("place", ["config", "data"])
def test_what_is_no_plain_value_in_a_checkpoint(tmp_path: Path, place: str, run: Run) -> None:
    """Tensors may be loaded, but nothing could write them into a header."""
    model = build_model(depth=18, size=(64, 32), last_stride=2)
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    content = {"state_dict": state, CONFIG_KEY: model.config, DATA_KEY: {"images": 3}}
    torch.save(content, tmp_path / "good.ckpt")
    content[CONFIG_KEY if place == "config" else DATA_KEY] = (
        {**model.config, "depth": torch.tensor(18)} if place == "config" else {"images": torch.tensor(3)}
    )
    torch.save(content, tmp_path / "odd.ckpt")
    export = ["export", "--format", "safetensors", "--out", "o.safetensors", "--checkpoint"]
    if place == "config":
        assert "odd.ckpt" in refusal(run([*export, "odd.ckpt"], tmp_path))
        assert not (tmp_path / "o.safetensors").exists()
        assert run([*export, "good.ckpt"], tmp_path).code == 0
    else:  # what anybody's data tell of themselves is left out
        assert run([*export, "odd.ckpt"], tmp_path).code == 0
        assert load_model(tmp_path / "o.safetensors").trained_on is None
        assert load_model(tmp_path / "good.ckpt").trained_on == {"images": 3}


def test_no_weights_to_train_from_are_unpickled(
    tmp_path: Path, tiny_market: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, run: Run
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


def test_no_run_to_resume_or_report_is_unpickled(
    tmp_path: Path, tiny_market: Path, mark: Path, run: Run
) -> None:
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
def test_no_features_are_unpickled(tmp_path: Path, mark: Path, kind: str, run: Run) -> None:
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


@pytest.mark.parametrize("model", ["pickle", "[" * 10_000, "{", "null", '{"checkpoint": 1}', 5, ["a", "b"]])
def test_no_fingerprint_of_features_is_unpickled(tmp_path: Path, mark: Path, model: Any, run: Run) -> None:
    content = object_array(mark) if model == "pickle" else np.array(model)
    np.savez(tmp_path / "f.npz", features=np.eye(3), paths=np.array(["a"] * 3), model=content)
    refused = refusal(run(["gallery", "build", "--features", "f.npz", "--gallery", "G"], tmp_path))
    assert "f.npz: array 'model'" in refused
    assert not mark.exists()


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


def test_no_gallery_is_unpickled(saved: Path, mark: Path, run: Run) -> None:
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


LOADS = re.compile(
    r"\w*load\w*|read(er|_\w+)?|\w*unpickl\w*|import_module|\w*memmap|from(file|buffer|string|regex)"
    r"|literal_eval|ParquetFile|safe_open|ZipFile|TarFile|InferenceSession|File|eval|exec|compile|system"
    r"|p?open|run_(module|path)|unpack_archive|genfromtxt",
    re.IGNORECASE,
)


def imported(tree: ast.AST) -> dict[str, str]:
    """The full names of what a module imports, by those that it gives them."""
    names = {}
    for node in ast.walk(tree):
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
            if isinstance(node, ast.ImportFrom):
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            else:  # ``import a.b`` gives the name ``a``
                first = alias.name.partition(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
    return names


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """Calls of what is imported or built in, by its full name."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            written = ast.unparse(node.func)
            root, dot, rest = written.partition(".")
            plain = re.fullmatch(r"[\w.]+", written)  # no method of a call's value
            if plain and (root in names or (not dot and hasattr(builtins, root))):
                yield names.get(root, root) + dot + rest, node


def test_every_place_that_loads_is_known() -> None:
    """A new call of what reads a file, or runs code, needs a test with a hostile file here, then its line."""
    known = {
        "importlib.import_module": {
            "__init__.py",
            "_deprecated.py",
            "attention/__init__.py",
            "commands/__init__.py",
            "runtime.py",  # --import, and class paths of recipes
        },
        "yaml.safe_load": {
            "_deprecated.py",
            "commands/train.py",
            "inputs.py",
            "reports/ablation_tables.py",
            "reports/language.py",
            "training/callbacks.py",
        },
        "numpy.load": {"data/cache.py", "inference/feature_files.py"},
        "numpy.lib.format.open_memmap": {"data/cache.py"},
        "h5py.File": {"data/cuhk03.py"},
        "scipy.io.loadmat": {"data/matlab.py"},
        "PIL.Image.open": {"data/images.py", "serving/uploads.py"},
        "json.loads": {
            "experiments/ablation.py",
            "gallery/additions.py",
            "gallery/manifest.py",
            "gallery/milvus.py",
            "gallery/milvus_lock.py",
            "gallery/store.py",
            "inference/feature_files.py",
            "inference/onnx_embedder.py",
            "inputs.py",
            "models/checkpoints.py",
            "models/weights.py",
        },
        "subprocess.Popen": {"experiments/ablation.py"},
        "ast.literal_eval": {"gallery/filters.py"},
        "faiss.read_index": {"gallery/segments.py"},
        "numpy.memmap": {"gallery/segments.py"},
        "numpy.frombuffer": {"gallery/segments.py", "reports/explorer.py"},
        "numpy.lib.format.read_magic": {"inference/feature_files.py"},
        "numpy.lib.format.read_array_header_1_0": {"inference/feature_files.py"},
        "zipfile.ZipFile": {"inference/feature_files.py", "models/weights.py"},
        "numpy.lib.format.read_array": {"gallery/additions.py", "inference/feature_files.py"},
        "csv.reader": {"data/events.py", "inference/feature_files.py"},
        "pyarrow.parquet.ParquetFile": {"inputs.py"},
        "onnxruntime.InferenceSession": {"inference/graphs.py", "models/export.py"},
        "onnx.load": {"models/onnx_graph.py", "models/quantize.py"},
        "torch.jit.load": {"models/export.py"},
        "safetensors.safe_open": {"models/weights.py"},
        "torch.load": {"models/weights.py"},
    }  # fmt: skip
    never = {
        "eval", "exec", "compile", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load",
        "yaml.full_load",
        "os.system", "pandas.read_pickle", "pandas.read_parquet", "json.load", "numpy.fromfile",
        "joblib.load", "shelve.open",
    }  # fmt: skip
    harmless = {"re.compile", "open", "os.open", "jinja2.FileSystemLoader", "torch.utils.data.DataLoader"}
    found: dict[str, set[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        for called, node in calls(file):
            assert called not in never, f"{name}, line {node.lineno}: {called}"
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called == "torch.load":
                assert options["weights_only"] == "True"
            if called in ("numpy.load", "numpy.lib.format.read_array"):
                assert options["allow_pickle"] == "False"
            assert options.get("shell", "False") == "False"
            ours = called.startswith("rga_reid.") or called in harmless
            if LOADS.fullmatch(called.rpartition(".")[2]) and not ours:
                found.setdefault(called, set()).add(name)
    assert found == known


def test_a_loader_is_found_whatever_it_is_called(tmp_path: Path) -> None:
    lines = ["from pickle import load as harmless", "import numpy as n", "import yaml", "harmless(f)"]
    lines += ["n.lib.format.read_array(f)", "yaml.load_all(f)", "__import__('os')", "exec(text)"]
    (tmp_path / "new.py").write_text("\n".join(lines))
    found = [called for called, _ in calls(tmp_path / "new.py")]
    assert found == ["pickle.load", "numpy.lib.format.read_array", "yaml.load_all", "__import__", "exec"]
