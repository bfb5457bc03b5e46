"""``explain`` from the command line: Grad-CAM, activations and gates, and models without relations."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rga_reid.commands import main
from rga_reid.errors import InputError
from rga_reid.experiments.heat_maps import default_view, heat_maps
from rga_reid.models import EmbeddingModel, build_model, load_model, save_model
from rga_reid.models.embedding import uint8_batch
from rga_reid.reports.heat_maps import english
from tests.page_texts import element_texts

Browse = Callable[..., AbstractContextManager[Any]]
SIZE = (64, 32)


class ForwardOnly(nn.Module):
    """Attention of a user: neither relations nor gates."""

    def __init__(self, in_channels: int, size: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((in_channels, 1, 1), 0.5))
        del size

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class WithGates(ForwardOnly):
    """Attention of a user with gates."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gates(x)["place"]

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        return {"place": x.mean(1, keepdim=True).sigmoid()}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    files = [str(folder / name) for name in ("a.jpg", "b.jpg", "c.jpg")]
    for file in files:
        coarse = rng.integers(0, 256, (8, 4, 3)).astype(np.uint8)
        Image.fromarray(coarse.repeat(8, 0).repeat(8, 1)).save(file)
    return files


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    choices: dict[str, Any] = {"plain": None, "se": "se", "pam": "pam"}
    choices |= {one.__name__: f"{__name__}.{one.__name__}" for one in (ForwardOnly, WithGates)}
    files = {}
    for name, attention in choices.items():
        torch.manual_seed(0)
        files[name] = str(folder / f"{name}.safetensors")
        save_model(build_model(depth=18, attention=attention, stages=(4,), size=SIZE), files[name])
    return files


def page_of(out: Path, *words: str) -> str:
    assert main(["explain", *words, "--out", str(out)]) == 0
    return out.read_text(encoding="utf-8")


def test_a_model_without_attention_gets_a_grad_cam(
    images: list[str], checkpoints: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--image", *images[:2], "--checkpoint", checkpoints["plain"], checkpoints["pam"]]
    page = page_of(tmp_path / "page.html", *words)
    assert "4 maps of 2 pictures (--view gradcam)\n" in capsys.readouterr().out
    assert element_texts(page, "h1") == ["Grad-CAM: length of the embedding"]
    assert page.count("<b>plain.safetensors</b>") == page.count("<b>pam.safetensors</b>") == 2
    assert "ResNet-18, 64×32 pixels" in element_texts(page, "p")[0]
    notes = element_texts(page, "li")
    assert notes.count("4×2 places") == 4
    assert notes[0].startswith("length of the embedding ")
    chinese = page_of(tmp_path / "zh.html", *words, "--lang", "zh")
    assert element_texts(chinese, "h1") == ["Grad-CAM 热图：特征向量的模（L2 范数）"]
    assert element_texts(chinese, "li").count("4×2 个位置") == 4


def test_grad_cam_of_a_similarity_shows_both_pictures(
    images: list[str], checkpoints: dict[str, str], tmp_path: Path
) -> None:
    words = ["--image", images[0], "--similar-to", images[1], "--checkpoint", checkpoints["pam"]]
    page = page_of(tmp_path / "page.html", *words)
    model = load_model(checkpoints["pam"])
    embeddings = model.embed([images[0], images[1]])
    assert f"cosine similarity {float(embeddings[0] @ embeddings[1]):.3f}" in element_texts(page, "li")
    assert element_texts(page, "h2") == ["a.jpg and b.jpg"]
    captions = element_texts(page, "figcaption")
    assert captions == [f"{first}{name}.jpg" for first in ("Photo", "pam.safetensors") for name in "ab"]
    one, two = heat_maps(images[:1], checkpoints={"model": model}, similar_to=images[1])
    back, forth = heat_maps(images[1:2], checkpoints={"model": model}, similar_to=images[0])
    np.testing.assert_allclose(one.values, forth.values, rtol=1e-5)
    np.testing.assert_allclose(two.values, back.values, rtol=1e-5)
    assert one.values.shape == (4, 2)
    assert np.abs(one.values - two.values).max() > 0


def test_grad_cam_of_an_identity_explains_its_logit(images: list[str]) -> None:
    model = build_model(depth=18, classes=5, size=SIZE).eval()
    nn.init.normal_(model.classifier.weight)
    with torch.no_grad():
        logits = model.classifier(model(model.normalise(uint8_batch(images[:1], SIZE))))[0]
    shown = [heat_maps(images[:1], checkpoints={"m": model}, identity=number)[0] for number in (1, 4)]
    assert [english(one.notes[0]) for one in shown] == [
        f"logit of identity {number}: {float(logits[number]):.3g}" for number in (1, 4)
    ]
    assert np.abs(shown[0].values - shown[1].values).max() > 0
    with pytest.raises(InputError, match=r"m: identity: .* from 0 to 4"):
        heat_maps(images[:1], checkpoints={"m": model}, identity=5)


def test_a_checkpoint_of_train_explains_an_identity(
    images: list[str], checkpoints: dict[str, str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    model = build_model(backbone="resnet18", classes=5, size=SIZE).eval()
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"rga_reid_model": model.config, "state_dict": state}, tmp_path / "last.ckpt")
    words = ["--image", images[0], "--identity", "3", "--checkpoint"]
    page = page_of(tmp_path / "page.html", *words, str(tmp_path / "last.ckpt"))
    with torch.no_grad():
        logits = model.classifier(model(model.normalise(uint8_batch(images[:1], SIZE))))
    assert f"logit of identity 3: {float(logits[0, 3]):.3g}" in element_texts(page, "li")
    out = ["--out", str(tmp_path / "page.html")]
    assert "classifier" in refused("explain", *words, checkpoints["plain"], *out)


@pytest.mark.parametrize(
    ("backbone", "grid"),
    [
        ("timm/vit_tiny_patch16_224", (4, 2)),
        ("timm/mobilenetv2_100", (4, 2)),
        ("torchvision/mobilenet_v2", (4, 2)),
    ],
)
def test_other_backbones_have_maps(images: list[str], backbone: str, grid: tuple[int, int]) -> None:
    models = {backbone: build_model(backbone=backbone, size=SIZE).eval()}
    maps = heat_maps(images[:1], checkpoints=models, similar_to=images[1])
    maps += heat_maps(images[:1], "activation", checkpoints=models)
    for found in maps:
        assert found.values.shape == grid
        assert found.values.any()
        assert backbone in english(found.network)
    assert default_view(models) == "gradcam"


def test_maps_show_where_a_region_is_used(images: list[str], tmp_path: Path) -> None:
    """A backbone whose only channel is the brightness of patches: its Grad-CAM and activation follow the picture."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[16:32] = 255
    Image.fromarray(pixels).save(tmp_path / "band.png")

    class Brightness(nn.Module):
        channels, size = 1, SIZE

        def map_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
            return [(size[0] // 16, size[1] // 16)]

        def attention_stages(self) -> dict[int, nn.Module]:
            return {}

        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(images.mean(1, keepdim=True), 16)

    model = EmbeddingModel(Brightness(), mean=(0, 0, 0), std=(1, 1, 1))  # type: ignore[arg-type]
    for view in ("gradcam", "activation"):
        (found,) = heat_maps([tmp_path / "band.png"], view, checkpoints={"brightness": model})
        assert (found.values > 0).tolist() == [[False] * 2, [True] * 2, [False] * 2, [False] * 2]
    assert "Brightness" in english(found.network)


def test_a_constant_score_has_no_map(images: list[str]) -> None:
    """A map of rounding errors would look like one of a score."""

    class UnitLength(nn.Module):
        channels, size = 4, SIZE

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 16, stride=16)

        def map_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
            return [(size[0] // 16, size[1] // 16)]

        def attention_stages(self) -> dict[int, nn.Module]:
            return {}

        def map_layer(self) -> nn.Module:
            return self.conv

        def to_map(self, output: Tensor) -> Tensor:
            return output

        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.normalize(self.conv(images).mean((2, 3)))[:, :, None, None]

    model = EmbeddingModel(UnitLength())  # type: ignore[arg-type]
    (found,) = heat_maps(images[:1], checkpoints={"m": model})
    assert not found.values.any()
    assert "no gradient" in english(found.notes[1])
    assert heat_maps(images[:1], checkpoints={"m": model}, similar_to=images[1])[0].values.any()


@pytest.mark.parametrize("kind", ["png", pytest.param("pdf", marks=pytest.mark.slow)])
def test_figures_of_several_pictures_and_models(
    images: list[str], checkpoints: dict[str, str], tmp_path: Path, kind: str
) -> None:
    out = tmp_path / f"figure.{kind}"
    words = ["--checkpoint", checkpoints["plain"], checkpoints["se"], "--view", "activation"]
    assert main(["explain", "--image", *images[:2], *words, "--out", str(out)]) == 0
    if kind == "png":
        pixels = np.asarray(Image.open(out).convert("L"))
        assert min(pixels.shape) > 600
        assert pixels.std() > 10
    else:
        assert out.read_bytes().startswith(b"%PDF")


def test_the_activation_page_shows_the_activation(
    images: list[str], checkpoints: dict[str, str], tmp_path: Path
) -> None:
    words = ["--image", images[0], "--checkpoint", checkpoints["plain"], "--view", "activation"]
    page = page_of(tmp_path / "page.html", *words)
    model = load_model(checkpoints["plain"])
    with torch.no_grad():
        maps = model.backbone(model.normalise(uint8_batch(images[:1], SIZE)))
    energy = maps.square().sum(1)
    assert f"<span>{float(energy.max() / energy.norm()):.3g}</span></div>" in page
    assert element_texts(page, "h1") == ["Activation of the last map"]


def test_gates_of_own_and_of_users_modules(
    images: list[str], checkpoints: dict[str, str], tmp_path: Path
) -> None:
    words = [
        "--image",
        images[0],
        "--view",
        "gates",
        "--checkpoint",
        checkpoints["se"],
        checkpoints["WithGates"],
    ]
    page = page_of(tmp_path / "page.html", *words)
    captions = [one for one in element_texts(page, "figcaption") if "Photo" not in one]
    names = [Path(checkpoints[name]).name for name in ("se", "WithGates")]
    assert captions == [f"{names[0]}after stage 4: channel", f"{names[1]}after stage 4: place"]
    assert "512 channels, sorted" in element_texts(page, "li")


@pytest.mark.parametrize("name", ["ForwardOnly", "WithGates"])
@pytest.mark.parametrize("view", ["relations", "gradcam", "activation", None])
def test_attention_with_forward_only_is_accepted(
    images: list[str], checkpoints: dict[str, str], tmp_path: Path, name: str, view: str | None
) -> None:
    words = ["--image", images[0], "--checkpoint", checkpoints[name], *(["--view", view] if view else [])]
    page = page_of(tmp_path / "page.html", *words)
    if view in ("gradcam", "activation"):
        title = "Activation of the last map" if view == "activation" else "Grad-CAM: length of the embedding"
        assert element_texts(page, "h1") == [title]
        return
    held = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert held is not None
    trained, untrained = json.loads(held[1])["exhibits"]
    assert trained["label"] == f"{name}, trained"
    assert not untrained["trained"]
    symbols = [step["symbol"] for step in trained["stages"][0]["flow"]]
    assert symbols == (["x", "out"] if name == "ForwardOnly" else ["x", "place", "out"])
    assert (trained["stages"][0]["attention"] is None) == (name == "ForwardOnly")
    for kind in ("png", "pdf"):
        out = str(tmp_path / f"figure.{kind}")
        assert main(["explain", *words, "--out", out]) == 0


def test_the_default_view_is_relations_if_every_model_has_attention(
    images: list[str], checkpoints: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--image", images[0], "--checkpoint", checkpoints["WithGates"], checkpoints["se"]]
    page_of(tmp_path / "page.html", *words)
    assert "--view relations" in capsys.readouterr().out
    page_of(tmp_path / "page.html", *words, checkpoints["plain"])
    assert "--view gradcam" in capsys.readouterr().out


def test_own_classes_are_compared_untrained(images: list[str], tmp_path: Path) -> None:
    path = f"{ForwardOnly.__module__}.ForwardOnly"
    assert ForwardOnly.__module__ in sys.modules
    page = page_of(tmp_path / "page.html", "--image", images[0], "--attention", path, "--view", "gradcam")
    assert f"{path}, untrained" in element_texts(page, "b")


def test_bad_input_is_named(
    images: list[str], checkpoints: dict[str, str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    start = ["explain", "--image", images[0], "--out", str(tmp_path / "page.html")]
    plain = ["--checkpoint", checkpoints["plain"]]
    both = ["--similar-to", images[1], "--identity", "1"]
    assert "--similar-to, --identity" in refused(*start, *plain, *both)
    assert "--identity" in refused(*start, "--identity", "1")
    assert "--identity" in refused(*start, *plain, "--identity", "-1")
    assert "--view gradcam" in refused(*start, *plain, *both[:2], "--view", "gates")
    assert "--similar-to" in refused(*start, *plain, "--similar-to", str(tmp_path / "gone.jpg"))
    assert "same embedding" in refused(*start, *plain, "--similar-to", images[0])
    assert "--stage" in refused(*start, *plain, "--stage", "4")
    pam = ["--checkpoint", checkpoints["pam"]]
    assert "--stage: expected a png or pdf" in refused(*start, *pam, "--view", "relations", "--stage", "4")
    figure = [*start[:-1], str(tmp_path / "figure.png"), *pam, "--lang", "zh"]
    assert "--lang: expected an html page, got png" in refused(*figure)
    assert not (tmp_path / "figure.png").exists()
    assert "plain.safetensors: expected a model with attention" in refused(
        *start, *plain, "--view", "relations"
    )
    assert "gates" in refused(*start, "--checkpoint", checkpoints["pam"], "--view", "gates")
    assert "'gradcams'" in refused(*start, *plain, "--view", "gradcams")
    assert not (tmp_path / "page.html").exists()


def test_the_page_fits_a_phone_and_a_screen(
    images: list[str], checkpoints: dict[str, str], tmp_path: Path, browse: Browse
) -> None:
    words = ["--image", *images[:2], "--similar-to", images[2], "--checkpoint"]
    page_of(tmp_path / "page.html", *words, checkpoints["plain"], checkpoints["se"])
    with browse(tmp_path / "page.html", width=390, height=844) as browser:
        for width in (390, 1280):
            screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            sizes = browser.execute_script(
                "return [...document.images].map(one => [one.naturalWidth, one.clientWidth, one.clientHeight])"
            )
            assert len(sizes) == 2 * (2 + 4)
            for natural, across, down in sizes:
                assert natural == 2 * SIZE[1]
                assert down == pytest.approx(2 * across, abs=1)
        assert browser.get_log("browser") == []
