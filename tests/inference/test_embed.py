"""Features of image files against one image at a time, and images that ``embed`` accepts."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from rga_reid.commands import main
from rga_reid.data import read_image
from rga_reid.errors import InputError
from rga_reid.inference import extract_features, stream_features
from rga_reid.models.embedding import iter_batches


class MeanColour:
    """Embed an image as the mean of each channel, and record the calls."""

    size = (8, 4)
    dimension = 3

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []
        self.devices: set[object] = set()

    def embed(self, images: torch.Tensor, *, batch_size: int = 64, device: Any = None) -> torch.Tensor:
        assert images.dtype == torch.uint8
        self.batches.append(tuple(images.shape))
        self.devices.add(device)
        return torch.nn.functional.normalize(images.double().mean((2, 3)).float())


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for number, path in enumerate(paths):
        shape = (8, 4, 3) if number % 2 else (19, 11, 3)
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return paths


def embed_one_by_one(paths: list[Path]) -> np.ndarray:
    rows = []
    for path in paths:
        image = read_image(path).resize((4, 8), Image.Resampling.BILINEAR)
        colour = np.asarray(image, dtype=np.float64).mean((0, 1))
        rows.append(colour / np.linalg.norm(colour))
    return np.array(rows)


@pytest.mark.parametrize(("batch_size", "batches"), [(1, [1] * 7), (3, [3, 3, 1]), (64, [7])])
def test_features_are_in_order_for_any_batch_size(
    files: list[Path], batch_size: int, batches: list[int]
) -> None:
    model = MeanColour()
    features, table = extract_features(model, files, batch_size, "cpu")
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, embed_one_by_one(files), atol=1e-6)
    assert table.columns.tolist() == ["path"]
    assert table["path"].tolist() == [str(path) for path in files]
    assert model.batches == [(count, 3, 8, 4) for count in batches]
    assert model.devices == {"cpu"}


def test_a_table_keeps_its_columns(files: list[Path]) -> None:
    given = pd.DataFrame({"pid": range(7), "path": [str(path) for path in files]}, index=list("gfedcba"))
    features, table = extract_features(MeanColour(), given.iloc[::-1])
    assert table["pid"].tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert table.index.tolist() == list(range(7))
    np.testing.assert_allclose(features, embed_one_by_one(files[::-1]), atol=1e-6)


def test_a_single_path_and_no_path(files: list[Path]) -> None:
    for path in (files[0], str(files[0])):
        found, _ = extract_features(MeanColour(), path)
        np.testing.assert_allclose(found, embed_one_by_one(files[:1]), atol=1e-6)
    features, table = extract_features(MeanColour(), [])
    assert (features.shape, len(table)) == ((0, 3), 0)


def test_the_next_batch_is_decoded_while_the_model_works(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rga_reid.inference import embed

    decode, second = embed.decode, threading.Event()

    def watched(paths: list[str], size: tuple[int, int], **options: object) -> np.ndarray:
        if str(files[2]) in paths:
            second.set()
        return decode(paths, size, **options)

    class Waiting(MeanColour):
        def embed(self, images: torch.Tensor, **options: Any) -> torch.Tensor:
            assert second.wait(timeout=60)
            return super().embed(images, **options)

    monkeypatch.setattr(embed, "decode", watched)
    assert len(extract_features(Waiting(), files[:4], 2)[0]) == 4


def test_unreadable_images_may_be_skipped(files: list[Path]) -> None:
    """Also if a whole batch is unreadable: the model never gets an empty one."""
    for number in (2, 3, 5):
        files[number].write_bytes(b"not an image")
    model, refused = MeanColour(), []
    table = pd.DataFrame({"path": [str(path) for path in files], "pid": range(7)})
    batches = list(stream_features(model, table, 2, refused=refused))
    assert [rows["pid"].tolist() for _, rows in batches] == [[0, 1], [4], [6]]
    readable = [path for number, path in enumerate(files) if number not in (2, 3, 5)]
    features = np.concatenate([features for features, _ in batches])
    np.testing.assert_allclose(features, embed_one_by_one(readable), atol=1e-6)
    assert [Path(str(error).split(":")[0]).name for error in refused] == ["2.png", "3.png", "5.png"]
    with pytest.raises(InputError, match=r"2\.png"):
        extract_features(model, files, 3)


def test_wrong_arguments_are_refused(files: list[Path]) -> None:
    with pytest.raises(InputError, match="batch_size"):
        extract_features(MeanColour(), files, 0)
    with pytest.raises(InputError, match="'path'"):
        extract_features(MeanColour(), pd.DataFrame({"file": ["a"]}))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_image_with_a_bad_feature_is_named(files: list[Path], value: float) -> None:
    class Bad(MeanColour):
        def embed(self, images: torch.Tensor, **options: Any) -> torch.Tensor:
            features = super().embed(images)
            features[2:, 1] = value
            return features

    with pytest.raises(InputError, match=r"5\.png"):
        extract_features(Bad(), files[3:], 4)


def test_features_of_a_command(tiny_market: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    images, out = str(tiny_market / "query"), tmp_path / "f.npz"
    words = ["features", "--checkpoint", str(tiny_checkpoint), "--images", images, "--out", str(out)]
    assert main(words) == 0
    with np.load(out) as file:
        assert file["features"].shape == (4, 512)
        assert sorted(file["pids"]) == [11, 12, 13, 14]


def test_errors_do_not_print_the_content_of_files() -> None:
    content = b"\xff\xd8 secret picture" * 5000
    model = MeanColour()
    calls: list[Any] = [
        lambda: extract_features(model, [content]),  # type: ignore[list-item]
        lambda: extract_features(model, content),  # type: ignore[arg-type]
        lambda: read_image(content),  # type: ignore[arg-type]
        lambda: list(iter_batches([content], (8, 4), 1)),
        lambda: list(iter_batches(content, (8, 4), content)),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(InputError) as caught:
            call()
        assert "secret" not in str(caught.value)
        assert len(str(caught.value)) < 200
