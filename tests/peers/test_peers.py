"""Exported models in the programs that people run them in: boxmot, OpenVINO, OpenCV, Triton's configuration.

Each program has a separate environment, see ``environments.py``.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image, ImageFilter

from rga_reid import load_embedder, load_model
from rga_reid.attention import ATTENTION_MODULES
from rga_reid.inference.feature_files import read_features, read_fingerprint
from rga_reid.models import EmbeddingModel, build_model, export_model, save_model
from rga_reid.models.export import ExportSettings
from tests.peers.environments import environment, run_program

pytestmark = pytest.mark.slow

SIZE = (64, 32)
PEOPLE, CROP = 3, (96, 48)
FRAMES, GAP = 40, range(18, 24)


def trained(attention: str | None = "rga") -> EmbeddingModel:
    """Return a model whose batch norms have the statistics of people as ``draw_video`` draws them."""
    torch.manual_seed(0)
    model = build_model(depth=18, attention=attention, stages=(3,), size=SIZE)
    people = np.stack([draw_person(number) for number in range(32)])
    images = torch.from_numpy(people).permute(0, 3, 1, 2).flip(1).float()
    resized = torch.nn.functional.interpolate(images, SIZE, mode="bilinear", antialias=True)
    for _ in range(30):
        model(model.normalise(resized.to(torch.uint8)))
    return model.eval()


def draw_person(number: int) -> np.ndarray:
    """Return a figure of three colours on grey, as soft as a photo, uint8 ``(96, 48, 3)``, BGR."""
    rng = np.random.default_rng(number)
    image = np.full((*CROP, 3), 110.0)
    rows, columns = np.mgrid[: CROP[0], : CROP[1]]
    for top, bottom, half_width in ((6, 22, 8), (22, 56, 15), (56, 94, 11)):
        colour = rng.integers(0, 256, 3)
        inside = (rows >= top) & (rows < bottom) & (np.abs(columns - 24) < half_width)
        image[inside] = colour
    drawn = Image.fromarray(np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8))
    return np.asarray(drawn.filter(ImageFilter.GaussianBlur(2)))


def draw_video() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return frames, detections as ``track.py`` takes them, and the person of each detection.

    The people walk slowly, are hidden for some frames, and return in another order, in places where nobody was.
    """
    frames = np.full((FRAMES, 160, 320, 3), 110, np.uint8)
    frames += np.random.default_rng(0).integers(0, 6, frames.shape, dtype=np.uint8)
    detections, people = [], []
    for number in range(FRAMES):
        if number in GAP:
            continue
        for person in range(PEOPLE):
            place = person if number < GAP.start else (person + 1) % PEOPLE
            x, y = 10 + 100 * place + number % 18 + (0 if number < GAP.start else 45), 30
            frames[number, y : y + CROP[0], x : x + CROP[1]] = draw_person(person)
            detections.append((number, x, y, x + CROP[1], y + CROP[0], 0.9, 0))
            people.append(person)
    return frames, np.array(detections, np.float32), np.array(people)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "model.safetensors"
    save_model(trained(), path)
    return path


@pytest.mark.parametrize("name", ["m.onnx", "m.torchscript", "m.xml"])
def test_boxmot_tracks_with_our_file(checkpoint: Path, tmp_path: Path, name: str) -> None:
    model = load_model(checkpoint)
    words = ["export", "--checkpoint", checkpoint, "--target", "boxmot", "--out", tmp_path / name]
    run_program("boxmot", "rga_reid.commands", *words)
    frames, detections, people = draw_video()
    np.savez(tmp_path / "video.npz", frames=frames, detections=detections)
    run_program(
        "boxmot", "tests.peers.track", tmp_path / "video.npz", tmp_path / name, tmp_path / "result.npz"
    )
    result = np.load(tmp_path / "result.npz")
    boxes = detections.astype(int)
    crops = [frames[row[0], row[2] : row[4], row[1] : row[3]] for row in boxes]
    features = model.embed(crops, channel_order="bgr").numpy()
    assert (result["embeddings"] * features).sum(1).min() >= 0.995
    assert max(features[0] @ features[1], features[1] @ features[2]) < 0.95  # different people
    for tracker in ("botsort", "strongsort"):
        rows = result[tracker]
        before, after = (
            {(person, track) for frame, row, track in rows if chosen(frame) for person in [people[row]]}
            for chosen in (lambda frame: frame < GAP.start, lambda frame: frame >= GAP.stop)
        )
        assert len(before) == PEOPLE, tracker  # one track for each
        assert len({track for _, track in before}) == PEOPLE, tracker
        if tracker == "botsort":  # found again by their looks; StrongSort limits the distance as well
            assert before == after


def compare(runtime: str, file: Path, folder: Path, batch: int = 3) -> float:
    """Return the smallest cosine between embeddings of onnxruntime and of another program."""
    session = onnxruntime.InferenceSession(file)
    size = session.get_inputs()[0].shape[2:]
    images = np.random.default_rng(batch).integers(0, 256, (batch, 3, *size))
    fed = (
        images.astype(np.uint8)
        if "uint8" in session.get_inputs()[0].type
        else images.astype(np.float32) / 64 - 2
    )
    np.save(folder / "input.npy", fed)
    run_program("deploy", "tests.peers.infer", runtime, file, folder / "input.npy", folder / "output.npy")
    found, expected = np.load(folder / "output.npy"), session.run(None, {"images": fed})[0]
    return float((found * expected).sum(1).min())


@pytest.mark.parametrize("attention", [*ATTENTION_MODULES, None])
def test_opencv_and_openvino_run_every_module(attention: str | None, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    export_model(trained(attention), file, "onnx", ExportSettings(input="float"))
    for runtime in ("opencv", "openvino"):
        for batch in (1, 3):
            assert compare(runtime, file, tmp_path, batch) > 0.9999


@pytest.mark.parametrize("options", [{}, {"opset": 13}, {"batch": 3}, {"simplify": True}], ids=str)
def test_openvino_runs_uint8_files(checkpoint: Path, options: Any, tmp_path: Path) -> None:
    export_model(load_model(checkpoint), tmp_path / "m.onnx", "onnx", ExportSettings(**options))
    assert compare("openvino", tmp_path / "m.onnx", tmp_path) > 0.9999


@pytest.mark.parametrize("words", [[], ["--half"], ["--target", "boxmot"]], ids=str)
def test_openvino_files(checkpoint: Path, words: list[str], tmp_path: Path) -> None:
    file, model = tmp_path / "m.xml", load_model(checkpoint)
    command = ["export", "--checkpoint", checkpoint, "--format", "openvino", "--out", file, *words]
    run_program("deploy", "rga_reid.commands", *command)
    size = (tmp_path / "m.bin").stat().st_size
    assert size < 30e6 if words == ["--half"] else size > 40e6
    assert file.with_name("m.xml.metadata.json").exists() == ("boxmot" in words)
    assert '<weights value="' in file.read_text()
    images = torch.randint(0, 256, (5, 3, *SIZE), dtype=torch.uint8)
    fed = model.normalise(images).numpy() if "boxmot" in words else images.numpy()
    np.save(tmp_path / "input.npy", fed)
    run_program(
        "deploy", "tests.peers.infer", "openvino", file, tmp_path / "input.npy", tmp_path / "output.npy"
    )
    cosines = (np.load(tmp_path / "output.npy") * model.embed(images).numpy()).sum(1)
    assert cosines.min() > (0.999 if words == ["--half"] else 0.99999)


@pytest.mark.parametrize("source", ["checkpoint", "m.onnx"])
def test_features_by_openvino(checkpoint: Path, source: str, tmp_path: Path) -> None:
    model = load_model(checkpoint)
    file = checkpoint if source == "checkpoint" else tmp_path / source
    if source != "checkpoint":
        export_model(model, file, "onnx")
    for number in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(draw_person(number)).save(tmp_path / "images" / f"{number}.png")
    out = tmp_path / "f.npz"
    words = ["--images", tmp_path / "images", "--checkpoint", file, "--engine", "openvino", "--out", out]
    run_program("deploy", "rga_reid.commands", "features", *words)
    features, table = read_features(out)
    expected = model.embed(table["path"].tolist()).numpy()
    assert np.abs(features - expected).max() < 1e-4
    fingerprint = read_fingerprint(out)
    assert fingerprint is not None
    assert fingerprint.engine == "openvino"
    assert fingerprint.is_same(load_embedder(checkpoint).fingerprint)


def test_the_openvino_program_of_the_export_guide_runs(
    checkpoint: Path, tmp_path: Path, code_blocks: Any
) -> None:
    (program,) = [block for block in code_blocks("docs/export.md") if "import openvino" in block.text]
    command = ["export", "--checkpoint", checkpoint, "--out", tmp_path / "model.xml"]
    run_program("deploy", "rga_reid.commands", *command)
    for number, name in enumerate(("a.jpg", "b.jpg")):
        Image.fromarray(draw_person(number)).save(tmp_path / name)
    done = subprocess.run(
        [environment("deploy"), "-c", program.text], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    a, b = load_model(checkpoint).embed([tmp_path / "a.jpg", tmp_path / "b.jpg"])
    assert float(done.stdout.removeprefix("similarity ")) == pytest.approx(float(a @ b), abs=0.01)


def test_triton_parses_the_configuration(checkpoint: Path, tmp_path: Path) -> None:
    export_model(load_model(checkpoint), tmp_path / "m.onnx", "onnx", ExportSettings(target="triton"))
    script = (
        "import sys; from google.protobuf import text_format; from tritonclient.grpc import model_config_pb2\n"
        "config = text_format.Parse(open(sys.argv[1]).read(), model_config_pb2.ModelConfig())\n"
        "print(config.backend, config.default_model_filename, list(config.input[0].dims), "
        "model_config_pb2.DataType.Name(config.input[0].data_type), list(config.output[0].dims))"
    )
    done = subprocess.run(
        [environment("deploy"), "-c", script, str(tmp_path / "config.pbtxt")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split(maxsplit=2) == ["onnxruntime", "m.onnx", "[3, 64, 32] TYPE_UINT8 [512]\n"]


def test_programs_of_the_trackers_guide_run(checkpoint: Path, tmp_path: Path, code_blocks: Any) -> None:
    model = load_model(checkpoint)
    model_folder = tmp_path / "run"
    model_folder.mkdir()
    save_model(model, model_folder / "model.safetensors")
    export_model(model, model_folder / "model.onnx", "onnx", ExportSettings(input="float", target="boxmot"))
    frames, detections, _ = draw_video()
    np.savez(model_folder / "video.npz", frames=frames, detections=detections)
    programs = [block for block in code_blocks("docs/trackers.md") if block.language == "python"]
    assert len(programs) == 3
    for program in programs:
        name = "boxmot" if "boxmot" in program.text else "deploy"
        script = model_folder / "program.py"
        script.write_text(
            "import numpy as np\nvideo = np.load('video.npz')\n"
            "frames, rows = list(video['frames']), video['detections']\n"
            "detections = [rows[rows[:, 0] == number, 1:] for number in range(len(frames))]\n" + program.text
        )
        done = subprocess.run(
            [environment(name), script.name], cwd=model_folder, capture_output=True, text=True,
            env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.strip(), program.text
