"""Make a model faster in inference: without its batch norms."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class _Tracer(fx.Tracer):
    """Records calls of torch's layers and of attention modules, without looking into them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return hasattr(m, "relations") or super().is_leaf_module(m, module_qualified_name)


def optimize_module(module: nn.Module) -> nn.Module:
    """Return a module for inference, with its batch norms folded into the convolutions before them.

    A submodule with a method ``fold``, which returns a module for inference, is replaced by its result. Batch norms
    that do not directly follow a convolution stay.

    Args:
        module: in evaluation mode; its parts are replaced.
    """
    fold: Any = getattr(module, "fold", None)
    if fold is not None:
        folded: nn.Module = fold()
        return folded.eval()
    for norm_name, conv_name in _find_norms(module).items():
        conv: Any = module.get_submodule(conv_name).double()
        norm: Any = module.get_submodule(norm_name).double()
        _replace(module, conv_name, fuse_conv_bn_eval(conv, norm).float())
        _replace(module, norm_name, nn.Identity())
    for name, child in list(module.named_children()):
        setattr(module, name, optimize_module(child))
    return module


def _find_norms(module: nn.Module) -> dict[str, str]:
    """Return the names of batch norms, with those of the convolutions whose only use they are.

    A module that torch.fx cannot trace has none; its parts may have some.
    """
    try:
        graph = _Tracer().trace(module)
    except Exception:  # code of any network; depends on the values of its input
        return {}
    calls = [node for node in graph.nodes if node.op == "call_module"]
    called = [node.target for node in calls]
    found = {}
    for node in calls:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        norm, conv = (module.get_submodule(str(call.target)) for call in (node, source))
        once = called.count(node.target) == called.count(source.target) == 1
        if once and type(norm) is nn.BatchNorm2d and type(conv) is nn.Conv2d and _is_plain(norm, conv):
            found[str(node.target)] = str(source.target)
    return found


def _is_plain(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> bool:
    """Return whether the norm uses running statistics, and no hook needs the output in between."""
    return norm.running_mean is not None and not (conv._forward_hooks or norm._forward_pre_hooks)


def _replace(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    old = module.get_submodule(name)
    part._forward_hooks.update(old._forward_hooks)
    setattr(module.get_submodule(parent), child, part)
