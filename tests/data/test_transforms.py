"""Batch augmentation, each image with its own parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import v2

from rga_reid.errors import InputError
from rga_reid.training.augmentation import Augmentation, step_generator

NEUTRAL = {"crop_probability": 0.0, "flip_probability": 0.0, "erase_probability": 0.0}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def images(n: int, height: int = 32, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def augment(
    batch: torch.Tensor, size: tuple[int, int] = (32, 16), seed: int = 0, **options: object
) -> torch.Tensor:
    settings = Augmentation(**{**NEUTRAL, **options})  # type: ignore[arg-type]
    return settings(batch, size, MEAN, STD, step_generator(seed))


def plain(batch: torch.Tensor) -> torch.Tensor:
    """Normalised and nothing else."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (batch / 255 - mean) / std


def test_whole_images_are_normalised_and_mirrored() -> None:
    batch = images(4)
    for flip, expected in ((0.0, batch), (1.0, batch.flip(-1))):
        torch.testing.assert_close(
            augment(batch, flip_probability=flip), plain(expected), atol=1e-4, rtol=1e-4
        )


def test_crop_is_a_window_of_the_enlarged_image() -> None:
    """Every output equals one of the 5 x 3 windows of PIL's resize to 36 x 18."""
    batch = images(12)
    done = augment(batch, crop_probability=1.0)
    seen = set()
    for image, result in zip(batch, done, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((18, 36), Image.Resampling.BILINEAR)
        enlarged = plain(torch.tensor(list(picture.tobytes())).view(36, 18, 3).permute(2, 0, 1)[None])[0]
        errors = {
            (y, x): float((enlarged[:, y : y + 32, x : x + 16] - result).abs().max())
            for y in range(5)
            for x in range(3)
        }
        best = min(errors, key=lambda place: errors[place])
        assert errors[best] < 0.02  # PIL rounds to whole grey levels: 1 / 255 / 0.2
        seen.add(best)
    assert len(seen) > 4


def test_erasing_sets_one_rectangle_to_the_mean() -> None:
    batch = torch.full((300, 3, 64, 32), 255, dtype=torch.uint8)
    done = augment(batch, (64, 32), erase_probability=1.0)
    erased = (done == 0).all(1)
    shares = []
    for mask in erased:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert int(mask.sum()) == height * width  # a full rectangle
        assert 0.25 < height / width < 4.2  # 0.3 to 1 / 0.3, rounded to whole pixels
        shares.append(height * width / mask.numel())
    assert 0.015 < min(shares) < 0.06
    assert 0.3 < max(shares) < 0.42


def test_larger_images_are_resized_with_antialiasing() -> None:
    stripes = torch.zeros(1, 3, 128, 64, dtype=torch.uint8)
    stripes[..., ::2, :] = 255  # finer than the output can show: grey, not black or white
    middle = augment(stripes)[0, 0, 8:-8]
    assert float((middle * STD[0] + MEAN[0]).sub(0.5).abs().max()) < 0.05


def test_the_same_numbers_give_the_same_batch() -> None:
    batch, options = images(8), {"crop_probability": 0.5, "flip_probability": 0.5, "erase_probability": 0.5}
    done = [augment(batch, seed=seed, **options) for seed in (0, 0, 1)]
    assert torch.equal(done[0], done[1])
    assert not torch.equal(done[0], done[2])
    steps = [(seed, step, rank) for seed in range(5) for step in range(20) for rank in range(3)]
    draws = {float(torch.rand(1, generator=step_generator(*step), dtype=torch.float64)) for step in steps}
    assert len(draws) == 300


def test_mixes_no_devices() -> None:
    generator = step_generator(0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        batch = torch.zeros(2, 3, 64, 32, dtype=torch.uint8, device="cuda")
        assert Augmentation(colour=0.1)(batch, (32, 16), MEAN, STD, generator).device.type == "cuda"


def test_colours_are_changed_as_by_torchvision() -> None:
    """The factors of each image are read from its grey pixels: brightness, then contrast, then saturation."""
    base = 60 + images(40) // 4
    base[:, :, 0] = torch.randint(60, 120, (40, 1, 16), dtype=torch.uint8)  # a grey row
    done = augment(base, colour=0.2, seed=3)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    factors = []
    for before, after in zip(base / 255, done * std + mean, strict=True):
        brightness_and_contrast = np.polyfit(before[0, 0].numpy(), after[0, 0].numpy(), 1)
        grey = float(v2.functional.rgb_to_grayscale(before).mean())
        # after = contrast * (brightness * before - m) + m with m = brightness * grey
        brightness = float(np.polyval(brightness_and_contrast, grey)) / grey
        contrast = float(brightness_and_contrast[0]) / brightness
        changed = v2.functional.adjust_brightness(before, brightness)
        changed = v2.functional.adjust_contrast(changed, contrast)
        grey_map = v2.functional.rgb_to_grayscale(changed)
        saturation = float(((after - grey_map) / (changed - grey_map))[:, 1:].nanmedian())
        expected = v2.functional.adjust_saturation(changed, saturation)
        torch.testing.assert_close(after, expected, atol=2e-3, rtol=0)
        factors.append((brightness, contrast, saturation))
    for drawn in np.array(factors).T:
        assert 0.795 < drawn.min() < 0.85
        assert 1.15 < drawn.max() < 1.205
    assert np.abs(np.corrcoef(np.array(factors).T) - np.eye(3)).max() < 0.5  # drawn separately
    assert torch.equal(augment(base), augment(base, colour=0.0))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("colour", -0.1),
        ("crop_probability", 1.5),
        ("flip_probability", -0.1),
        ("crop_scale", 0.9),
        ("erase_area", (0.4, 0.2)),
        ("erase_aspect", 0.0),
    ],
)
def test_wrong_settings_are_refused(option: str, value: object) -> None:
    with pytest.raises(InputError, match=option):
        Augmentation(**{option: value})  # type: ignore[arg-type]


# --- one image at a time, as the released code does it ---------------------------------------------------

SIZE = (64, 32)
RELEASED = Augmentation()


def per_image(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """The released code's pipeline for one picture (3, H, W), with torchvision's transforms, in float."""
    height, width = SIZE
    if rng.random() < 0.5:
        enlarged = v2.functional.resize(picture, [round(1.125 * height), round(1.125 * width)])
        picture = v2.RandomCrop(SIZE)(enlarged)
    else:
        picture = v2.functional.resize(picture, list(SIZE))
    picture = v2.RandomHorizontalFlip(0.5)(picture)
    x = v2.functional.normalize(picture / 255, MEAN, STD)
    if rng.random() < 0.5:
        for _ in range(100):
            area, aspect = rng.uniform(0.02, 0.4) * height * width, rng.uniform(0.3, 1 / 0.3)
            tall, wide = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if tall < height and wide < width:
                top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
                x[:, top : top + tall, left : left + wide] = 0
                break
    return x


def described(batch: Tensor) -> dict[str, np.ndarray]:
    """What happened to each copy of `ramps`: the erased rectangle, and where the rest came from."""
    erased = (batch == 0).all(1)
    x, y = ((batch[:, c] * STD[c] + MEAN[c]).masked_fill(erased, float("nan")) for c in (0, 1))
    rows, columns = erased.any(2), erased.any(1)
    return {
        "erased area": erased.float().mean((1, 2)).numpy(),
        "erased top": rows.int().argmax(1).numpy(),
        "erased left": columns.int().argmax(1).numpy(),
        "erased height": rows.sum(1).numpy(),
        "horizontal place": x.nanmean((1, 2)).numpy(),
        "horizontal step": x.diff(dim=2).nanmean((1, 2)).numpy(),  # negative if flipped
        "vertical place": y.nanmean((1, 2)).numpy(),
        "vertical step": y.diff(dim=1).nanmean((1, 2)).numpy(),  # smaller if enlarged
    }


def ramps() -> Tensor:
    """A picture (3, 64, 32) whose first two colours tell where a pixel is."""
    down, across = torch.meshgrid(torch.linspace(10, 245, 64), torch.linspace(10, 245, 32), indexing="ij")
    return torch.stack([across, down, torch.full_like(down, 200)]).round().to(torch.uint8)


def assert_drawn_alike(one: np.ndarray, two: np.ndarray, *, alike: bool, name: str) -> None:
    """Two-sample Kolmogorov-Smirnov test; a little noise covers differences of the last bits."""
    rng = np.random.default_rng(7)
    noisy = [values + rng.normal(0, 0.05 * one.std(), len(values)) for values in (one, two)]
    value = ks_2samp(*noisy).pvalue
    assert value > 0.01 if alike else value < 1e-4, f"{name}: p = {value:.3g}"


def test_a_batch_is_drawn_from_the_distribution_of_single_images() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    picture = ramps().float()
    single = described(torch.stack([per_image(picture, rng) for _ in range(1500)]))
    pixels = ramps().expand(1500, -1, -1, -1)
    ours = described(RELEASED(pixels, SIZE, MEAN, STD, step_generator(1)))
    for name, values in single.items():
        assert_drawn_alike(values, ours[name], alike=True, name=name)

    other = Augmentation(crop_probability=0.3, flip_probability=0.3, erase_area=(0.02, 0.3))
    wrong = described(other(pixels, SIZE, MEAN, STD, step_generator(1)))
    for name in ("erased area", "horizontal step", "vertical step"):
        assert_drawn_alike(single[name], wrong[name], alike=False, name=name)


def test_a_small_image_is_enlarged_as_resizing_does() -> None:
    """But for the rounding to whole grey levels."""
    small = images(6, 32, 16)
    enlarged = torch.nn.functional.interpolate(small.float(), (64, 32), mode="bilinear").round()
    for flip in (0.0, 1.0):
        ours = augment(small, (64, 32), flip_probability=flip)
        expected = augment(enlarged.to(torch.uint8), (64, 32), flip_probability=flip)
        torch.testing.assert_close(ours, expected, atol=0.011, rtol=0)  # half a level: 0.5 / 255 / 0.2
