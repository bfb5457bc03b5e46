"""Operations of a training step that are not deterministic on CUDA, which docs/reproducibility.md lists.

The list is that of ``torch.use_deterministic_algorithms``. No GPU is needed, as the operations are recorded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rga_reid.attention import ATTENTION_MODULES
from rga_reid.training import build_reid_module

DOCUMENT = Path(__file__).parents[2] / "docs" / "reproducibility.md"
RAISES = {  # under deterministic algorithms, on CUDA
    *("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward"),
    *("avg_pool3d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward"),
    *("max_unpool2d", "max_unpool3d", "upsample_linear1d_backward", "upsample_bilinear2d_backward"),
    *("upsample_bicubic2d_backward", "upsample_trilinear3d_backward", "_upsample_bilinear2d_aa_backward"),
    *("_upsample_bicubic2d_aa_backward", "reflection_pad1d_backward", "reflection_pad2d_backward"),
    *("nll_loss2d_forward", "nll_loss2d_backward", "_ctc_loss_backward", "put", "put_", "histc", "bincount"),
    *("median", "kthvalue", "grid_sampler_2d_backward", "grid_sampler_3d_backward", "scatter_reduce"),
    *("_embedding_bag_dense_backward", "_embedding_bag_per_sample_weights_backward"),
}
SWITCHES = {  # to another algorithm
    *("cumsum", "index_put", "index_put_", "_index_put_impl_", "scatter_add", "scatter_add_", "index_add"),
    *("index_add_", "index_copy", "index_copy_", "scatter", "scatter_", "embedding_dense_backward"),
    *("max_pool3d_with_indices_backward", "replication_pad2d_backward", "index_select_backward"),
    *("_scaled_dot_product_efficient_attention_backward", "_scaled_dot_product_flash_attention_backward"),
}


class Recorder(TorchDispatchMode):
    """Collect the names of all operations, including those of the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def step_operations(**options: Any) -> set[str]:
    """Return the operations of a training step: augmentation, model, losses, gradients, optimizer."""
    module = build_reid_module(3, depth=18, stages=(3,), weights=None, size=(64, 32), **options)
    images = torch.randint(0, 256, (6, 3, 80, 40), dtype=torch.uint8)
    optimizer = module.optimizer([p for p in module.parameters() if p.requires_grad])
    with Recorder() as recorder:
        model, size = module.model, next((schedule.sizes[0] for schedule in module.callbacks), (64, 32))
        model.backbone.set_input_size(size)
        x = module.augmentation(images, size, model.mean, model.std, torch.Generator().manual_seed(0))
        losses = module.losses(model(x), torch.arange(6) // 2)
        losses["loss"].backward()
        optimizer.step()
    return recorder.names


def check_documented(names: set[str]) -> None:
    assert names & RAISES == set()
    found = names & SWITCHES
    text = DOCUMENT.read_text(encoding="utf-8")
    assert found <= {"index_put", "_index_put_impl_", "index_put_", "scatter", "scatter_"}, found
    for name in found:
        assert f"`{name.strip('_')}" in text


def test_operations_of_a_training_step() -> None:
    names = step_operations(attention="rga")
    assert {"convolution_backward", "bmm", "addcdiv_"} <= names
    check_documented(names)


@pytest.mark.parametrize("attention", ATTENTION_MODULES)
def test_operations_of_attention_modules(attention: str) -> None:
    module = ATTENTION_MODULES[attention](64, (16, 8))
    with Recorder() as recorder:
        module(torch.randn(6, 64, 16, 8, requires_grad=True)).sum().backward()
    assert any("backward" in name for name in recorder.names)
    check_documented(recorder.names)


@pytest.mark.parametrize("attention", ATTENTION_MODULES)
def test_modules_with_the_fused_attention_kernel(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is used on GPUs only, so that a record of a step on a CPU does not show it."""
    fused, taken = torch.nn.functional.scaled_dot_product_attention, []

    def noted(*args: Any, **options: Any) -> torch.Tensor:
        taken.append(attention)
        return fused(*args, **options)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", noted)
    with torch.device("meta"):  # not a CPU
        ATTENTION_MODULES[attention](64, (16, 8))(torch.empty(2, 64, 16, 8))
    lines = DOCUMENT.read_text(encoding="utf-8").split("\n")
    (row,) = (line for line in lines if line.startswith("| gradient of `scaled_dot_product_attention`"))
    assert (f"`{attention}`" in row) == bool(taken)


def test_rga_at_another_size() -> None:
    """Its weights over positions are interpolated, with a gradient that is not deterministic."""
    names = step_operations(attention="rga", resolution_schedule=[(0, 48, 32), (3, 64, 32)])
    assert names & RAISES == {"_upsample_bilinear2d_aa_backward"}
    assert "`_upsample_bilinear2d_aa_backward`" in DOCUMENT.read_text(encoding="utf-8")
