"""The explorer in notebooks, ``Relations`` as text and figure, and the notebooks of the docs."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rga_reid
from rga_reid.attention import CAM, PAM, RGA, SE, NonLocal
from rga_reid.errors import InputError
from rga_reid.models import build_model

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"


def test_a_model_is_shown_inline(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(depth=18, attention="pam", stages=(4,), size=(64, 32)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    shown = [
        rga_reid.show(model, image, lang="en")
        for image in (pixels, Image.fromarray(pixels), tmp_path / "a.png")
    ]
    pages = [one.page.replace("a.png", "image.png") for one in shown]
    assert pages[0] == pages[1] == pages[2]
    frame = shown[0]._repr_html_()
    found = re.fullmatch(r'<iframe srcdoc="([^"]*)" .*></iframe>', frame, re.DOTALL)
    assert found is not None
    assert unescape(found[1]) == shown[0].page
    assert len(repr(shown[0])) < 100
    shown[0].save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == shown[0].page
    several = rga_reid.show({"mine": model}, pixels).page
    assert '"label": "mine, trained"' in several
    assert '"label": "pam, trained"' in shown[0].page
    with pytest.raises(InputError, match="pan"):
        rga_reid.show("pan", pixels)


def test_relations_are_one_line_for_each_matrix() -> None:
    x = torch.rand(2, 16, 8, 4)
    text = repr(RGA(16, (8, 4)).eval().relations(x))
    assert len(text.splitlines()) == 3
    assert "spatial: (2, 32, 32)" in text
    assert "channel: (2, 16, 16)" in text
    symmetric = PAM(16).relations(x)
    symmetric.matrices["positions"] = torch.ones(2, 32, 32)
    assert "1 to 1, asymmetry 0.00" in repr(symmetric)
    one_way = torch.zeros(2, 32, 32)
    one_way[:, 0, 1] = 3
    symmetric.matrices["positions"] = one_way
    assert "0 to 3, asymmetry 1.00" in repr(symmetric)
    assert "asymmetry" not in repr(NonLocal(16, sub_sample=True).relations(x))


def test_plots_show_the_row_and_the_column_of_the_point() -> None:
    x = torch.rand(2, 16, 8, 4)
    relations = RGA(16, (8, 4)).eval().relations(x)
    pictures = [axes.images[0].get_array() for axes in relations.plot(item=1, point=(0.4, 0.6)).axes[:3]]
    matrix = relations.matrices["spatial"][1].detach().numpy()
    node = 3 * 4 + 2
    np.testing.assert_array_equal(pictures[0], matrix)
    np.testing.assert_array_equal(pictures[1], matrix[node].reshape(8, 4))
    np.testing.assert_array_equal(pictures[2], matrix[:, node].reshape(8, 4))
    axes = relations.plot(item=1, point=(0.4, 0.6)).axes
    assert [one.get_title() for one in axes[1:3]] == ["row 15", "column 15"]  # positions count from 1
    both = np.concatenate([matrix[node], matrix[:, node]])
    assert {one.images[0].get_clim() for one in axes[1:3]} == {(both.min(), both.max())}
    pooled = NonLocal(16, sub_sample=True).relations(x)
    assert relations.plot()._repr_png_().startswith(b"\x89PNG")  # without pyplot, notebooks know no other way
    shapes = [axes.images[0].get_array().shape for axes in pooled.plot().axes[:3]]
    assert shapes == [(32, 8), (4, 2), (8, 4)]
    x[0, 5] *= 9  # the most active channel
    assert "row 5" in [axes.get_title() for axes in CAM(16).relations(x).plot().axes]
    with pytest.raises(ValueError, match="weights only"):
        SE(16).relations(x).plot()


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda file: file.stem)
def test_notebooks_of_the_docs_run(file: Path, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # results are not committed
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("text/html" in output.get("data", {}) for output in outputs)
    assert not [output.text for output in outputs if "Warning" in output.get("text", "")]
    plots = [cell for cell in notebook.cells if ".plot(" in cell.source]
    assert all("image/png" in cell.outputs[-1]["data"] for cell in plots)
