"""Backbones of timm: convolutional networks with attention after their stages, and transformers."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from rga_reid.errors import InputError, did_you_mean, short_repr
from rga_reid.inputs import truncate
from rga_reid.models.backbone import Size
from rga_reid.models.network import NetworkBackbone, no_stride_1_error

MIN_REDUCTION = 4  #: the first stage has a quarter of the input's resolution, as in a ResNet

#: arguments of networks that are built for one image size, to try in this order
_SIZE_OPTIONS: list[dict[str, Any]] = [
    {"dynamic_img_size": True},  # position embeddings are interpolated to other sizes
    {"dynamic_mask": True, "strict_img_size": False},  # windows are padded
    {},
]
#: options of timm.create_model that this module sets
_RESERVED = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "num_classes",
    "global_pool", "features_only", "img_size", "output_stride", "scriptable", "exportable", "in_chans",
}  # fmt: skip

logging.getLogger("timm").setLevel(logging.ERROR)  # otherwise a line for each download and adapted layer


class TimmBackbone(NetworkBackbone):
    """A network of timm.

    Stages are those of timm's ``feature_info``, from a quarter of the input's resolution on. A network whose
    last activations are tokens has none: its output is its pooled feature (class or mean token, as the network
    chooses) as a map of one position.

    Args:
        name: name of timm, such as ``convnext_atto`` or ``vit_tiny_patch16_224.augreg_in21k``.
        size: input (H, W) in pixels.
        last_stride: 1 builds the last stage without its stride; 2 as published; None for 1 if possible.
        pretrained: download timm's weights of this name.
        options: other arguments of the network.

    Raises:
        InputError: an unknown name or option, weights that are unavailable, or a last stride or size that the
            network does not support.
    """

    net: Any

    def __init__(
        self,
        name: str,
        size: Size,
        last_stride: int | None = None,
        pretrained: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._check_name(name)
        wrong = _RESERVED & set(options or ())
        if wrong:
            raise InputError(f"backbone timm/{name}: the option {min(wrong)} cannot be set")
        net, stride = _create(name, size, last_stride, pretrained, options or {})
        super().__init__(f"timm/{name}", net, (), size, stride)
        self._order = ""  # of the last map's axes; "pooled" for tokens
        self._stage_orders: list[str] = []
        self._dropped: list[str] = []
        self._probe()
        if self._order == "pooled":
            self.last_stride = None
        self.channels = self.trace(self.size)[-1][1]
        mean, std = net.pretrained_cfg.get("mean"), net.pretrained_cfg.get("std")
        if mean is not None and std is not None:
            self.mean, self.std = tuple(mean), tuple(std)

    @staticmethod
    def _check_name(name: str) -> None:
        if ":" in name or not timm.is_model(name):
            raise InputError(
                f"backbone: timm has no model {short_repr(name)}{did_you_mean(name, timm.list_models(), 3)}"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return the last feature map ``(n, C, h, w)`` of normalised float images ``(n, 3, H, W)``."""
        features = self.net.forward_features(images)
        if not self._order:  # the first call
            is_map = isinstance(features, Tensor) and features.ndim == 4
            self._order = (_find_order([features], self.net.num_features) or "NCHW") if is_map else "pooled"
        if self._order == "pooled":
            return self.net.forward_head(features, pre_logits=True)[:, :, None, None]
        return _to_nchw(features, self._order)

    def stage_map(self, stage: int, output: Tensor) -> Tensor:
        """Return the output of a stage as a map ``(n, C, h, w)``."""
        return _to_nchw(output, self._stage_orders[stage - 1])

    def stage_output(self, stage: int, maps: Tensor) -> Tensor:
        """Return a map ``(n, C, h, w)`` in the format of a stage's output."""
        return maps.permute(0, 2, 3, 1) if self._stage_orders[stage - 1] == "NHWC" else maps

    def map_layer(self) -> nn.Module:
        """Return the module whose output holds the last spatial activations.

        For a transformer it is the last block, or the first norm of that block if only the class token is read
        after it.
        """
        blocks = getattr(self.net, "blocks", None)
        grid = getattr(getattr(self.net, "patch_embed", None), "dynamic_feat_size", None)
        if self._order != "pooled" or blocks is None or grid is None:
            return self
        if self.net.global_pool != "token" or hasattr(self.net, "blocks_token_only"):  # of CaiT
            return blocks[-1]
        return getattr(blocks[-1], "norm1", self)

    def to_map(self, output: Tensor) -> Tensor:
        """Return the output of ``map_layer`` as a map ``(n, C, h, w)``, without class and register tokens."""
        if output.ndim != 3:
            return output
        height, width = self.net.patch_embed.dynamic_feat_size(self.input_size)
        return output[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))

    def recomputed_modules(self) -> list[nn.Module]:
        """Return the modules whose activations are recomputed in the backward pass with ``checkpointing``."""
        blocks = getattr(self.net, "blocks", None)
        return (
            list(blocks) if self._order == "pooled" and blocks is not None else super().recomputed_modules()
        )

    def adapt_published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a published state_dict with the keys and shapes of ``net``, without its classifier.

        Position embeddings are resampled, and other formats of known models renamed, by timm.
        """
        adapt = getattr(sys.modules[type(self.net).__module__], "checkpoint_filter_fn", None)
        if adapt is not None:
            state = adapt(state, self.net)
        classifier = self.net.pretrained_cfg.get("classifier") or ()
        names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        prefixes = tuple(f"{name}." for name in (*names, *self._dropped))
        return {key: value for key, value in state.items() if not key.startswith(prefixes)}

    def _probe(self) -> None:
        """Find the order of axes, the stages and unused parts by one forward pass on tensors without memory."""
        infos = [info for info in _feature_infos(self.net) if info["reduction"] >= MIN_REDUCTION]
        outputs: dict[str, list[Any]] = {info["module"]: [] for info in infos}
        handles = [
            module.register_forward_hook(lambda _, __, output, name=name: outputs[name].append(output))
            for name, module in self.net.named_modules()
            if name in outputs
        ]
        try:
            with torch.inference_mode(False), torch.enable_grad():
                parameters = {
                    key: torch.empty_like(value, device="meta").requires_grad_()
                    for key, value in self.named_parameters()
                }
                output = self.meta_forward(self.size, parameters)
        finally:
            for handle in handles:
                handle.remove()
        self.net.train()  # clears tensors that some networks cache in evaluation
        self._drop_unused(parameters, _find_leaves(output))
        shapes = []
        orders = [_find_order(outputs[info["module"]], info["num_chs"]) for info in infos]
        # stages have one map each, all of different modules
        if self._order != "pooled" and None not in orders and len(outputs) == len(infos):
            self.stage_names = tuple(outputs)
            self._stage_orders = [str(order) for order in orders]
            maps = (self.stage_map(stage, one) for stage, (one,) in enumerate(outputs.values(), 1))
            shapes = [tuple(one.shape) for one in maps]
        self._traced[self.size] = [*shapes, tuple(output.shape)]

    def _drop_unused(self, parameters: Mapping[str, Tensor], used: set[int]) -> None:
        """Remove modules that the feature does not depend on, such as a norm of the classifier.

        DistributedDataParallel refuses parameters without gradient.
        """
        unused = {key.removeprefix("net.") for key, value in parameters.items() if id(value) not in used}
        for name, module in list(self.net.named_modules()):
            keys = {f"{name}.{key}" for key, _ in module.named_parameters()}
            if keys and keys <= unused and not name.startswith(tuple(f"{other}." for other in self._dropped)):
                self.net.set_submodule(name, nn.Identity())
                self._dropped.append(name)


def _find_order(outputs: list[Any], channels: int) -> str | None:
    """Return the order of the axes of a module's only output; None if it is not one map."""
    if len(outputs) != 1 or not isinstance(outputs[0], Tensor) or outputs[0].ndim != 4:
        return None
    shape = outputs[0].shape
    return "NCHW" if shape[1] == channels else "NHWC" if shape[3] == channels else None


def _to_nchw(output: Any, order: str) -> Any:
    return output.permute(0, 3, 1, 2) if order == "NHWC" else output


def _feature_infos(net: Any) -> list[dict[str, Any]]:
    infos = getattr(net, "feature_info", None) or []
    return infos if isinstance(infos, list) else infos.get_dicts()


def _find_leaves(output: Tensor) -> set[int]:
    """Return the ids of the parameters that a tensor was computed from."""
    nodes: list[Any] = [output.grad_fn]
    seen: set[Any] = set()
    leaves: set[int] = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::AccumulateGrad":
            leaves.add(id(node.variable))
        nodes += [following for following, _ in node.next_functions]
    return leaves


def _create(
    name: str, size: Size, last_stride: int | None, pretrained: bool, options: Mapping[str, Any]
) -> tuple[Any, int]:
    """Return the network and the stride of its last stage."""
    published = timm.get_pretrained_cfg(name)
    is_fixed = published is not None and published.fixed_input_size  # built for one size, as transformers are
    if last_stride != 2 and not is_fixed:
        try:
            net = _call_timm(name, pretrained, {**options, "output_stride": 16})
        except (TypeError, AssertionError, NotImplementedError):  # no such option, or no such value
            net = None
        if net is not None and _feature_infos(net)[-1]["reduction"] == 16:
            _remove_dilation(net)
            return net, 1
    if last_stride == 1:
        raise no_stride_1_error(f"timm/{name}")
    error: Exception | None = None
    for sized in [{**extra, "img_size": size} for extra in _SIZE_OPTIONS] if is_fixed else [{}]:
        try:
            return _call_timm(name, pretrained, {**options, **sized}), 2
        except (TypeError, AssertionError, NotImplementedError) as failure:
            error = failure
    raise InputError(f"backbone timm/{name}: {truncate(error)}")


def _call_timm(name: str, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (TypeError, AssertionError, NotImplementedError):
        raise
    except Exception as error:  # anything, also from the download
        if pretrained:
            raise InputError(
                f"weights 'imagenet': cannot get timm's weights of {name} ({truncate(error)}); offline, save "
                "them elsewhere and give their path, or null for random weights"
            ) from None
        raise InputError(f"backbone timm/{name}: {truncate(error)}") from None


def _remove_dilation(net: nn.Module) -> None:
    """Undo the dilation with which timm replaces the stride of the last stage.

    Luo et al. (arXiv 1903.07071) remove the stride alone.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and set(module.dilation) != {1}:
            if not isinstance(module.padding, str):
                pairs = zip(module.padding, module.dilation, strict=True)
                module.padding = tuple(padding // dilation for padding, dilation in pairs)
            module.dilation = (1, 1)
