"""Features of image files against one image at a time."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from rga_reid.data import read_image
from rga_reid.errors import InputError
from rga_reid.inference import extract_features, stream_features


class MeanColour:
    """The mean of each channel, and how the model was asked."""

    size = (8, 4)
    dimension = 3

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []
        self.devices: set[object] = set()

    def embed(
        self, images: torch.Tensor, *, batch_size: int = 64, device: str | torch.device | None = None
    ) -> torch.Tensor:
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


def one_at_a_time(paths: list[Path]) -> np.ndarray:
    rows = []
    for path in paths:
        image = read_image(path).resize((4, 8), Image.Resampling.BILINEAR)
        colour = np.asarray(image, dtype=np.float64).mean((0, 1))
        rows.append(colour / np.linalg.norm(colour))
    return np.array(rows)


@pytest.mark.parametrize(("batch_size", "batches"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (64, [7])])
def test_features_are_in_order_whatever_the_batch(
    files: list[Path], batch_size: int, batches: list[int]
) -> None:
    model = MeanColour()
    features, table = extract_features(model, files, batch_size, "cpu")
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, one_at_a_time(files), atol=1e-6)
    assert table.columns.tolist() == ["path"]
    assert table["path"].tolist() == [str(path) for path in files]
    assert model.batches == [(count, 3, 8, 4) for count in batches]
    assert model.devices == {"cpu"}


def test_a_table_is_kept_with_its_columns(files: list[Path]) -> None:
    given = pd.DataFrame({"pid": range(7), "path": [str(path) for path in files]}, index=list("gfedcba"))
    features, table = extract_features(MeanColour(), given.iloc[::-1])
    assert table["pid"].tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert table.index.tolist() == list(range(7))
    np.testing.assert_allclose(features, one_at_a_time(files[::-1]), atol=1e-6)


def test_the_next_batch_is_decoded_while_the_model_works(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rga_reid.inference import embed as extraction

    second = threading.Event()
    decode = extraction.decode

    def watched(paths: list[str], size: tuple[int, int], **how: object) -> np.ndarray:
        if str(files[2]) in paths:
            second.set()
        return decode(paths, size, **how)

    class Waiting(MeanColour):
        def embed(
            self, images: torch.Tensor, *, batch_size: int = 64, device: str | torch.device | None = None
        ) -> torch.Tensor:
            assert second.wait(timeout=10)
            return super().embed(images, batch_size=batch_size, device=device)

    monkeypatch.setattr(extraction, "decode", watched)
    assert len(extract_features(Waiting(), files[:4], 2)[0]) == 4


def test_no_images() -> None:
    features, table = extract_features(MeanColour(), [])
    assert features.shape == (0, 3)
    assert table.empty


def test_unreadable_images_may_be_left_out(files: list[Path]) -> None:
    """Also where a whole batch is unreadable: the model is not asked about none."""
    for number in (2, 3, 5):
        files[number].write_bytes(b"not an image")
    model, refused = MeanColour(), []
    table = pd.DataFrame({"path": [str(path) for path in files], "pid": range(7)})
    batches = list(stream_features(model, table, 2, refused=refused))
    assert [rows["pid"].tolist() for _, rows in batches] == [[0, 1], [4], [6]]
    whole = [path for number, path in enumerate(files) if number not in (2, 3, 5)]
    np.testing.assert_allclose(
        np.concatenate([features for features, _ in batches]), one_at_a_time(whole), atol=1e-6
    )
    assert [Path(str(error).split(":")[0]).name for error in refused] == ["2.png", "3.png", "5.png"]
    assert [shape[0] for shape in model.batches] == [2, 1, 1]


def test_an_unreadable_image_is_named(files: list[Path]) -> None:
    files[5].write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"5\.png"):
        extract_features(MeanColour(), files, 2)


def test_wrong_arguments_are_refused(files: list[Path]) -> None:
    with pytest.raises(InputError, match="batch_size: expected a whole number of at least 1, got 0"):
        extract_features(MeanColour(), files, 0)
    with pytest.raises(InputError, match="expected a column 'path', found file"):
        extract_features(MeanColour(), pd.DataFrame({"file": ["a"]}))
