"""Exported files: their inputs, outputs, metadata and operators, compared with the model and with NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rga_reid import load_embedder
from rga_reid.attention import ATTENTION_MODULES
from rga_reid.errors import InputError
from rga_reid.inference import ModelFingerprint
from rga_reid.models import EmbeddingModel, build_model, export_model
from rga_reid.models.export import ExportSettings
from rga_reid.models.onnx_graph import write_onnx

SIZE = (16, 8)
#: operators of TensorRT 10, OpenVINO and OpenCV 5; Shape, Gather and Expand would be arithmetic on shapes
PORTABLE = {
    "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "Div", "Gemm", "MatMul", "Max",
    "MaxPool", "InstanceNormalization", "Mul", "Neg", "Pow", "ReduceL2", "ReduceMax", "ReduceMean", "Relu", "Reshape",
    "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
OTHER = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class SmallBackbone(nn.Module):
    """Two convolutions, which export in a second."""

    channels, size = 8, SIZE

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3, 2, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)

    def map_sizes(self, size: Any = SIZE) -> list[tuple[int, int]]:
        return [(size[0] // 4, size[1] // 4)]


class NoisyBackbone(SmallBackbone):
    """Gives other features in every run."""

    def forward(self, images: Tensor) -> Tensor:
        features = super().forward(images)
        return features + torch.randn_like(features)


@pytest.fixture
def model() -> EmbeddingModel:
    """A model whose features of different images differ, with a normalisation that is not ImageNet's."""
    torch.manual_seed(0)
    model = EmbeddingModel(SmallBackbone(), **OTHER)  # type: ignore[arg-type]
    for _ in range(20):  # statistics of the batch norms
        model(model.normalise(pixels(16, seed=7)))
    return model.eval()


def pixels(count: int, seed: int = 1) -> Tensor:
    """Return images of one colour each, with noise: their features are far apart."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 200, (count, 3, 1, 1), generator=generator)
    return (colours + torch.randint(0, 56, (count, 3, *SIZE), generator=generator)).to(torch.uint8)


def normalised(images: Tensor, mean: Any, std: Any) -> np.ndarray:
    scaled = images.double().numpy() / 255
    return ((scaled - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))).astype(np.float32)


def run_onnx(file: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images})[0])


def run(file: Path, images: np.ndarray) -> np.ndarray:
    if file.suffix == ".onnx":
        return run_onnx(file, images)
    with torch.no_grad():
        return np.asarray(torch.jit.load(str(file))(torch.from_numpy(images)))


def test_pixels_of_the_fixture_are_told_apart(model: EmbeddingModel) -> None:
    features = model.embed(pixels(6))
    others = (features @ features.T)[~torch.eye(6, dtype=torch.bool)]
    assert others.max() < 0.99


@pytest.mark.parametrize("name", ["m.onnx", "m.pt"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"input": "float"},
        {"input": "float", "l2": False},
        {"half": True},
        {"input": "float", "half": True},
    ],
    ids=str,
)
def test_inputs_and_outputs(model: EmbeddingModel, tmp_path: Path, name: str, options: Any) -> None:
    file = tmp_path / name
    export_model(model, file, "onnx" if name == "m.onnx" else "torchscript", ExportSettings(**options))
    half = options.get("half", False)
    for count in (1, 5):
        images = pixels(count)
        fed = images.numpy() if "input" not in options else normalised(images, *OTHER.values())
        wrong = fed.astype(np.float32) if fed.dtype == np.uint8 else images.numpy()
        fed = fed.astype(np.float16) if half and fed.dtype == np.float32 else fed
        found = run(file, fed)
        assert found.dtype == np.float32
        expected = model.embed(images).numpy()
        if not options.get("l2", True):
            with torch.no_grad():
                expected = model(model.normalise(images)).numpy()
            assert (np.abs(np.linalg.norm(expected, axis=1) - 1) > 0.01).all()
        np.testing.assert_allclose(found, expected, atol=5e-3 if half else 1e-5)
        with pytest.raises(Exception, match=r"type|expected"):  # of the runtimes
            run(file, wrong)


def test_boxmot_feeds_imagenets_normalisation(model: EmbeddingModel, tmp_path: Path) -> None:
    settings = ExportSettings(input="float", target="boxmot")
    for name, kind in (("m.onnx", "onnx"), ("m.torchscript", "torchscript")):
        export_model(model, tmp_path / name, kind, settings)
        found = run(tmp_path / name, normalised(pixels(4), *IMAGENET))
        np.testing.assert_allclose(found, model.embed(pixels(4)), atol=1e-5)
        with pytest.raises(Exception, match=r"type|expected"):  # of the runtimes
            run(tmp_path / name, pixels(4).numpy())
    embedder = load_embedder(tmp_path / "m.onnx")  # feeds what the metadata say
    np.testing.assert_allclose(embedder.embed(pixels(4)), model.embed(pixels(4)), atol=1e-5)
    assert json.loads((tmp_path / "m.torchscript.metadata.json").read_text()) == {
        "schema_version": 1,
        "model_kwargs_schema_version": 1,
        "model_name": None,
        "preprocess": "resize",
        "model_kwargs": {"img_size": [16, 8]},
    }
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(InputError, match=r"\.torchscript"):
        export_model(model, tmp_path / "m.pt", "torchscript", settings)


@pytest.mark.parametrize("options", [{"input": "float"}, pytest.param({}, marks=pytest.mark.slow)], ids=str)
def test_metadata_are_read_by_our_embedder(tmp_path: Path, options: Any) -> None:
    own = EmbeddingModel(SmallBackbone(), **OTHER, config={"name": "small"}).eval()  # type: ignore[arg-type]
    file = tmp_path / "m.onnx"
    export_model(own, file, "onnx", ExportSettings(**options), threshold=0.625)
    metadata = {item.key: item.value for item in onnx.load(file).metadata_props}
    assert (metadata["input"], metadata["layout"], metadata["channel_order"]) == (
        options.get("input", "uint8"),
        "NCHW",
        "rgb",
    )
    assert (metadata["resize"], metadata["antialias"], metadata["l2_normalised"]) == (
        "bilinear",
        "true",
        "true",
    )
    assert (metadata["dimension"], float(metadata["threshold"])) == ("8", 0.625)
    assert "unknown" in metadata["training_data_terms"]
    embedder = load_embedder(file)
    np.testing.assert_allclose(embedder.embed(pixels(5)), own.embed(pixels(5)), atol=5e-3)
    assert (embedder.size, embedder.dimension) == (SIZE, 8)
    original = ModelFingerprint.of(own, file)
    assert embedder.fingerprint.weights == original.weights
    assert embedder.fingerprint.is_same(original)


def test_terms_of_the_training_data(model: EmbeddingModel, tmp_path: Path) -> None:
    model.trained_on = {"images": 3, "terms": "Set: for research only"}
    export_model(model, tmp_path / "m.pt", "torchscript")
    extra = {"metadata.json": ""}
    torch.jit.load(str(tmp_path / "m.pt"), _extra_files=extra)
    metadata = json.loads(extra["metadata.json"])
    assert metadata["training_data_terms"] == "Set: for research only"
    assert (json.loads(metadata["mean"]), json.loads(metadata["size"])) == ([0.5, 0.4, 0.3], [16, 8])
    assert "threshold" not in metadata


def test_a_fixed_batch(model: EmbeddingModel, tmp_path: Path) -> None:
    export_model(model, tmp_path / "m.onnx", "onnx", ExportSettings(batch=2))
    assert onnxruntime.InferenceSession(tmp_path / "m.onnx").get_inputs()[0].shape == [2, 3, *SIZE]
    images = pixels(5)
    np.testing.assert_allclose(
        load_embedder(tmp_path / "m.onnx").embed(images), model.embed(images), atol=1e-5
    )


@pytest.mark.parametrize(
    "opset", [13, *(pytest.param(n, marks=pytest.mark.slow) for n in (15, 17, 18, 20, 23))]
)
def test_operator_sets(model: EmbeddingModel, tmp_path: Path, opset: int) -> None:
    file = tmp_path / "m.onnx"
    export_model(model, file, "onnx", ExportSettings(opset=opset))
    graph = onnx.load(file)
    onnx.checker.check_model(graph, full_check=True)
    assert [(item.domain, item.version) for item in graph.opset_import] == [("", opset)]
    np.testing.assert_allclose(run_onnx(file, pixels(3).numpy()), model.embed(pixels(3)), atol=1e-5)


def test_operators_that_an_opset_lacks_are_named(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.LayerNorm(12)).eval()
    write_onnx(module, torch.randn(2, 3, 4), tmp_path / "m.onnx", opset=17)
    with pytest.raises(InputError, match=r"--opset 16: .*LayerNormalization.* 17"):
        write_onnx(module, torch.randn(2, 3, 4), tmp_path / "n.onnx", opset=16)


def find_problems(file: Path) -> list[str]:
    """Return what other programs stumble over in a graph."""
    graph = onnx.load(file).graph
    constants = {constant.name for constant in graph.initializer}
    found = sorted({node.op_type for node in graph.node} - PORTABLE)
    found += [f"{node.op_type} of constants" for node in graph.node if constants.issuperset(node.input)]
    found += [f"computed shape of {node.name}" for node in graph.node
              if node.op_type == "Reshape" and node.input[1] not in constants]  # fmt: skip
    found += [f"value_info of {info.name}" for info in graph.value_info if info.name in constants]
    found += [str(node.metadata_props) for node in graph.node if node.metadata_props]
    return found


@pytest.mark.parametrize(
    "options",
    [{}, *(pytest.param(x, marks=pytest.mark.slow) for x in ({"simplify": True}, {"batch": 2}))],
    ids=str,
)
def test_graphs_are_portable(model: EmbeddingModel, tmp_path: Path, options: Any) -> None:
    export_model(model, tmp_path / "m.onnx", "onnx", ExportSettings(**options))
    assert find_problems(tmp_path / "m.onnx") == []
    assert str(tmp_path.parent) not in str((tmp_path / "m.onnx").read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("attention", [*ATTENTION_MODULES, None])
def test_graphs_of_attention_modules(attention: str | None, tmp_path: Path) -> None:
    network = build_model(depth=18, attention=attention, stages=(3, 4), size=(64, 32), stripes=2)
    network(torch.randn(8, 3, 64, 32))
    for opset in (None, 13):
        assert (
            export_model(network.eval(), tmp_path / "m.onnx", "onnx", ExportSettings(opset=opset)) > 0.99999
        )
        assert find_problems(tmp_path / "m.onnx") == []


@pytest.mark.slow
@pytest.mark.parametrize("opset", [None, 13])
def test_the_graph_of_the_released_model(opset: int | None, tmp_path: Path) -> None:
    """RGA-SC in ResNet-50 at full size: computed constants share names."""
    network = build_model(attention="rga", size=(256, 128)).eval()
    cosine = export_model(network, tmp_path / "m.onnx", "onnx", ExportSettings(opset=opset))
    assert cosine > 0.99999
    assert find_problems(tmp_path / "m.onnx") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "osnet_ain_x0_25", "embedding_dim": 32, "neck": "bn_relu"},
        {"backbone": "resnet18_ibn_a", "pooling": "gem", "stripes": 2},
        {"backbone": "mgn_resnet50", "size": (96, 32)},
    ],
    ids=str,
)
def test_graphs_of_other_backbones_and_heads(options: Any, tmp_path: Path) -> None:
    network = build_model(**{"size": (64, 32), **options})
    network(torch.randn(8, 3, *network.size))
    assert export_model(network.eval(), tmp_path / "m.onnx", "onnx") > 0.99999
    assert find_problems(tmp_path / "m.onnx") == []


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"photo{number}.png" for number in range(20)]
    for file, image in zip(files, pixels(20, seed=3), strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    return files


@pytest.mark.parametrize("quantize", ["int8", pytest.param("dynamic", marks=pytest.mark.slow)])
def test_quantised_files(model: EmbeddingModel, tmp_path: Path, photos: list[Path], quantize: Any) -> None:
    file = tmp_path / "m.onnx"
    cosine = export_model(model, file, "onnx", ExportSettings(quantize=quantize), calibration_images=photos)
    embedder = load_embedder(file)
    scores = (embedder.embed(photos) * model.embed(photos)).sum(1)
    assert cosine == pytest.approx(float(scores.min()), abs=1e-6)
    assert 0.95 < cosine < 0.9999999
    graph = onnx.load(file).graph
    kernels = [constant for constant in graph.initializer if len(constant.dims) == 4]
    assert kernels
    assert {kernel.data_type for kernel in kernels} <= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    if quantize == "int8":  # a scale for each channel of the two convolutions
        scales = {
            tuple(item.dims) for item in graph.initializer if item.name.endswith("_scale") and item.dims
        }
        assert {(16,), (8,)} <= scales
    # features of another precision are not mixed with the model's in a gallery
    assert not embedder.fingerprint.is_same(ModelFingerprint.of(model, file))


def test_quantisation_needs_images(model: EmbeddingModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--calibration-images"):
        export_model(model, tmp_path / "m.onnx", "onnx", ExportSettings(quantize="int8"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "batch", "config", "lines"),
    [
        ("plain", None, "plain/config.pbtxt", ["dims: [ 3, 16, 8 ]", "dims: [ 8 ]", "dynamic_batching { }"]),
        ("reid/1", None, "reid/config.pbtxt", ["TYPE_UINT8", "TYPE_FP32", "max_batch_size: 256"]),
        ("reid/1", 4, "reid/config.pbtxt", ["dims: [ 4, 3, 16, 8 ]", "dims: [ 4, 8 ]", "max_batch_size: 0"]),
    ],
)
def test_triton(
    model: EmbeddingModel, tmp_path: Path, folder: str, batch: int | None, config: str, lines: list[str]
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    export_model(model, tmp_path / folder / "m.onnx", "onnx", ExportSettings(target="triton", batch=batch))
    text = (tmp_path / config).read_text()
    for line in ('default_model_filename: "m.onnx"', 'name: "images"', 'name: "embeddings"', *lines):
        assert line in text
    assert ("dynamic_batching" in text) == (batch is None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"input": "int8"}, ["input", "uint8"]),
        ({"batch": 0}, ["batch"]),
        ({"opset": 12}, ["opset", "13"]),
        ({"target": "boxmot"}, ["--input float"]),
        ({"target": "tensorrt"}, ["target"]),
        ({"quantize": "int4"}, ["quantize"]),
        ({"quantize": "int8", "half": True}, ["half", "quantize"]),
    ],
)
def test_settings_that_are_refused(settings: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        ExportSettings(**settings)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "settings", "option"),
    [
        ("safetensors", {"input": "float"}, "--input float"),
        ("safetensors", {"l2": False}, "--no-l2"),
        ("safetensors", {"half": True}, "--half"),
        ("torchscript", {"batch": 2}, "--batch"),
        ("openvino", {"opset": 17}, "--opset"),
        ("torchscript", {"simplify": True}, "--simplify"),
        ("openvino", {"quantize": "dynamic"}, "--quantize"),
        ("torchscript", {"target": "triton"}, "--target triton"),
        ("safetensors", {"input": "float", "target": "boxmot"}, "--input float"),
    ],
)
def test_settings_of_other_formats_are_refused(kind: str, settings: Any, option: str) -> None:
    with pytest.raises(InputError, match=option):
        ExportSettings(**settings).check_format(kind)


def test_a_file_with_other_embeddings_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"m\.pt: .*differ"):
        export_model(EmbeddingModel(NoisyBackbone()), tmp_path / "m.pt", "torchscript")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_openvino_needs_its_package(
    model: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="openvino"):
        export_model(model, tmp_path / "m.xml", "openvino")
    assert not list(tmp_path.iterdir())
