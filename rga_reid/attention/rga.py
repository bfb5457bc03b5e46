"""Relation-aware global attention (RGA).

Zhang, Lan, Zeng, Jin, Chen: Relation-Aware Global Attention for Person Re-Identification, CVPR 2020,
https://arxiv.org/abs/1904.02998. Equation numbers are the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rga_reid.attention.functional import check_map, check_map_size, check_positive, reduce_channels
from rga_reid.attention.trace import Relations, Trace, run_layers


class RGA(nn.Module):
    """Relation-aware global attention: spatial (RGA-S), then channel (RGA-C); both are RGA-SC.

    A node, which is a position or a channel, learns its importance from its relations to *all* nodes, in both
    directions, and from its own feature:

        G[i, j] = θ(xᵢ)ᵀ φ(xⱼ)                  relation from i to j; not symmetric             (1)
        rᵢ      = [G[i, :], G[:, i]]            what i thinks of all, and all of i
        yᵢ      = [mean(g(xᵢ)), gg(rᵢ)]         own feature beside the relation feature         (2)
        aᵢ      = sigmoid(W(yᵢ)),  xᵢ ← aᵢ xᵢ                                                   (3)

    θ, φ, g, gg are 1×1 convolution, batch norm, ReLU. Because gg begins with a linear map [W₁ | W₂], the N×N
    relations need not be built to be used: W₁ G[i, :] + W₂ G[:, i] = (W₁ Φᵀ) θᵢ + (W₂ Θᵀ) φᵢ, with the
    same parameters and the same result.

    Weights that run over positions (the inputs of gg in RGA-S, of θ, φ and g in RGA-C) are maps of ``size``.
    ``set_map_size`` interpolates them in every forward, ``resize`` once and for all.

    Args:
        in_channels: channels C.
        size: (H, W) of the maps the parameters are made for; N = H·W positions.
        spatial: weigh positions (RGA-S).
        channel: weigh channels (RGA-C).
        channel_ratio: C-vectors are embedded in C // channel_ratio features.
        spatial_ratio: N-vectors are embedded in N // spatial_ratio features, at least 1.
        down_ratio: reduction inside W, to at least 1 feature.
        neutral_start: let the last batch norm of W begin with weight 0, so that all nodes begin with the same
            attention, ½. By default it begins with 1, as published: then attention is noise at first, which
            a pretrained backbone bears and one with random weights learns slowly under.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: neither part is wanted, or an option is outside its range; in ``forward`` and
            ``relations``, a tensor of another shape, or one that is not of floating-point numbers.
    """

    def __init__(
        self,
        in_channels: int,
        size: Sequence[int],
        *,
        spatial: bool = True,
        channel: bool = True,
        channel_ratio: int = 8,
        spatial_ratio: int = 8,
        down_ratio: int = 8,
        neutral_start: bool = False,
    ) -> None:
        super().__init__()
        check_positive(spatial_ratio=spatial_ratio, down_ratio=down_ratio)
        if not (spatial or channel):
            raise ValueError("RGA: expected spatial or channel attention or both, got neither")
        self.in_channels = in_channels
        self.size = self.map_size = check_map_size(size)
        self.spatial = spatial
        self.channel = channel
        positions = self.size[0] * self.size[1]
        inner_c = reduce_channels(in_channels, channel_ratio, "channel_ratio")
        inner_s = max(1, positions // spatial_ratio)
        if spatial:
            self.gx_spatial = _embedding(in_channels, inner_c)
            self.gg_spatial = _embedding(2 * positions, inner_s)
            self.W_spatial = _weighing(1 + inner_s, down_ratio)
            self.theta_spatial = _embedding(in_channels, inner_c)
            self.phi_spatial = _embedding(in_channels, inner_c)
        if channel:
            self.gx_channel = _embedding(positions, inner_s)
            self.gg_channel = _embedding(2 * in_channels, inner_c)
            self.W_channel = _weighing(1 + inner_c, down_ratio)
            self.theta_channel = _embedding(positions, inner_s)
            self.phi_channel = _embedding(positions, inner_s)
        if neutral_start:
            for kind in ("spatial",) * spatial + ("channel",) * channel:
                nn.init.zeros_(getattr(self, f"W_{kind}")[4].weight)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the positions, the channels, or both: the fast form, without relations."""
        self._check(x)
        if self.spatial:
            a = self._attention(x.flatten(2).mT, "spatial")
            x = x * a.view(x.shape[0], 1, *self.map_size)
        if self.channel:
            a = self._attention(x.flatten(2), "channel")
            x = x * a.view(x.shape[0], self.in_channels, 1, 1)
        return x

    def _attention(self, nodes: Tensor, kind: str) -> Tensor:
        """Attention (B, M) of nodes (B, M, F): M nodes of F features, positions or channels."""
        b, m, _ = nodes.shape
        g, gg, W, theta, phi = self._layers(kind)
        weight = torch.cat([self._weight(name, kind) for name in ("phi", "theta", "gx")])
        e = weight.shape[0] // 3
        embedded = F.relu_(_embed(nodes, weight, phi[1], theta[1], g[1])).view(b, m, 3 * e)
        phi_theta, own = embedded.split([2 * e, e], dim=2)

        # (W₁ Φᵀ, W₂ Θᵀ) for all images in two products, then (W₁ Φᵀ) θᵢ + (W₂ Θᵀ) φᵢ in one.
        columns = phi_theta.unflatten(2, (2, e)).permute(2, 1, 0, 3).reshape(2, m, b * e)
        mixed = torch.bmm(self._weight("gg", kind).unflatten(1, (2, m)).transpose(0, 1), columns)
        mixed = mixed.unflatten(2, (b, e)).flip(0).permute(2, 0, 3, 1)
        mixed = mixed.reshape(b, 2 * e, mixed.shape[-1])
        related = F.relu_(_product_norm(phi_theta, mixed, gg[1]))

        # The first layer of W on [own, related], without laying them side by side.
        first = W[0].weight.flatten(1)
        y = torch.addmm(own.mean(2).view(-1, 1) * first[:, 0], related, first[:, 1:].T)
        y = F.linear(F.relu_(_batch_norm(y, W[1])), W[3].weight.flatten(1))
        return torch.sigmoid(_batch_norm(y, W[4])).view(b, m)

    def relations(self, x: Tensor) -> Relations:
        """The explicit form, with matrices ``spatial`` (B, N, N) and ``channel`` (B, C, C).

        Entry [b, i, j] is G[i, j] = θ(xᵢ)ᵀ φ(xⱼ): what node i thinks of node j.
        """
        self._check(x)
        return Relations.of(self._explicit, x)

    def _explicit(self, x: Tensor, trace: Trace) -> Tensor:
        if self.spatial:
            a = self._explicit_attention(x.flatten(2).unsqueeze(3), "spatial", "_s", "x", trace)
            shape = (x.shape[0], 1, *self.map_size)
            a = trace.weight("spatial", "a_s", "attention of each position", "sigmoid(W(y_s))", a.view(shape))
            x = trace.step("x_s", "map, positions weighed", "a_s · x", x * a)
        if self.channel:
            source = "x_s" if self.spatial else "x"
            a = self._explicit_attention(x.flatten(2).mT.unsqueeze(3), "channel", "_c", source, trace)
            shape = (x.shape[0], self.in_channels, 1, 1)
            a = trace.weight("channel", "a_c", "attention of each channel", "sigmoid(W(y_c))", a.view(shape))
            x = trace.step("x_c", "map, channels weighed", f"a_c · {source}", x * a)
        return x

    def _explicit_attention(self, nodes: Tensor, kind: str, sub: str, source: str, trace: Trace) -> Tensor:
        """Attention (B, 1, M, 1) of nodes (B, F, M, 1) of the map ``source``, by the paper's equations."""
        node = "position" if kind == "spatial" else "channel"

        def embed(name: str, x: Tensor) -> Tensor:
            weight = self._weight(name, kind)[:, :, None, None]
            return run_layers(getattr(self, f"{name}_{kind}"), x, weight)

        t = trace.step(f"θ{sub}", f"each {node} as it looks at others", f"θ({source})", embed("theta", nodes))
        p = trace.step(f"φ{sub}", f"each {node} as it is looked at", f"φ({source})", embed("phi", nodes))
        G = trace.matrix(
            kind,
            f"G{sub}",
            f"relations between {node}s: row i is what i thinks of all",
            f"G[i, j] = θ{sub}[:, i] · φ{sub}[:, j]",
            torch.einsum("bei,bej->bij", t.squeeze(3), p.squeeze(3)),
        )
        r = trace.step(
            f"r{sub}",
            f"relations of each {node}, in both directions",
            f"r[:, i] = [G{sub}[i, :], G{sub}[:, i]]",
            torch.cat([G.mT, G], dim=1).unsqueeze(3),
        )
        f = trace.step(f"f{sub}", "relation feature", f"gg(r{sub})", embed("gg", r))
        o = embed("gx", nodes).mean(1, keepdim=True)
        o = trace.step(f"g{sub}", f"own feature of each {node}", f"mean over features of g({source})", o)
        y = trace.step(f"y{sub}", "relation-aware feature", f"[g{sub}, f{sub}]", torch.cat([o, f], dim=1))
        return torch.sigmoid(run_layers(getattr(self, f"W_{kind}"), y))

    def set_map_size(self, size: Sequence[int]) -> None:
        """Take maps of ``size`` from now on; the parameters stay as they are, maps of ``self.size``.

        Every forward interpolates the weights over positions (differentiably) and scales them by N / N', so
        that sums over positions keep their magnitude. ``set_map_size(self.size)`` is the exact original.
        """
        self.map_size = check_map_size(size)

    @torch.no_grad()
    def resize(self, size: Sequence[int]) -> None:
        """Make this a module built for maps of ``size``, by the interpolation of ``set_map_size``.

        New parameters take the place of the weights over positions: build optimisers afterwards.
        """
        self.set_map_size(size)
        over_positions = [("gg", "spatial")] * self.spatial
        over_positions += [(name, "channel") for name in ("gx", "theta", "phi")] * self.channel
        for name, kind in over_positions:
            conv = getattr(self, f"{name}_{kind}")[0]
            weight = self._weight(name, kind)[:, :, None, None].clone()
            conv.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
            conv.in_channels = weight.shape[1]
        self.size = self.map_size

    def _layers(self, kind: str) -> list[Any]:
        return [getattr(self, f"{name}_{kind}") for name in ("gx", "gg", "W", "theta", "phi")]

    def _weight(self, name: str, kind: str) -> Tensor:
        """The 1×1 convolution of an embedding as a matrix (outputs, inputs), for maps of the current size."""
        weight = getattr(self, f"{name}_{kind}")[0].weight.flatten(1)
        over_positions = (name == "gg") == (kind == "spatial")
        if not over_positions or self.map_size == self.size:
            return weight
        (h, w), (new_h, new_w) = self.size, self.map_size
        maps = weight.reshape(1, -1, h, w).to(torch.promote_types(weight.dtype, torch.float32))
        maps = F.interpolate(maps, (new_h, new_w), mode="bilinear", antialias=True, align_corners=False)
        maps = maps * (h * w / (new_h * new_w))
        return maps.reshape(weight.shape[0], -1).to(weight.dtype)

    def _check(self, x: Tensor) -> None:
        check_map("RGA", x, self.in_channels)
        if tuple(x.shape[2:]) != self.map_size:
            built, current = (f"{h}×{w}" for h, w in (self.size, self.map_size))
            raise ValueError(
                f"RGA: expected maps of {current} (parameters are built for {built}), got "
                f"{x.shape[2]}×{x.shape[3]}; set_map_size or resize adapt the module"
            )


def _embedding(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _weighing(inputs: int, down_ratio: int) -> nn.Sequential:
    hidden = max(1, inputs // down_ratio)
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, 1, 1, bias=False),
        nn.BatchNorm2d(1),
    )


def _embed(nodes: Tensor, weight: Tensor, *norms: Any) -> Tensor:
    """Batch norm, by ``norms`` side by side, of nodes (B, M, F) times weight (outputs, F), as rows."""
    if any(map(_takes_batch_statistics, norms)):
        return _batch_norm(_project(nodes, weight), *norms)
    scale, shift = _scale_and_shift(*norms)
    return _project(nodes, weight * scale[:, None], shift)


def _project(nodes: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Nodes (B, M, F) times weight (outputs, F), as rows (B·M, outputs), in any memory layout.

    One product over all rows is fastest, forward and backward. Where a node's features do not lie side by
    side it needs a copy of the nodes; a product per image copies the smaller result instead, but its backward
    makes one gradient of the weight per image, which is dear for many features.
    """
    b, m, features = nodes.shape
    if nodes.stride(2) == 1 or features > m:
        return F.linear(nodes.reshape(b * m, features), weight, bias)
    columns = torch.bmm(weight.expand(b, -1, -1), nodes.mT)
    if bias is not None:
        columns = columns.add_(bias[:, None])
    return columns.mT.reshape(b * m, -1)


def _batch_norm(rows: Tensor, *norms: Any) -> Tensor:
    """Batch norm of rows (n, features), by ``norms`` side by side, in one pass where they allow it."""
    first = norms[0]
    if not all(_joins(norm, first) for norm in norms):
        parts = rows.split([norm.num_features for norm in norms], dim=1)
        pairs = zip(norms, parts, strict=True)
        return torch.cat([norm(part[:, :, None, None]).flatten(1) for norm, part in pairs], dim=1)
    mean, var, weight, bias = _side_by_side(norms, "running_mean", "running_var", "weight", "bias")
    rows = F.batch_norm(rows, mean, var, weight, bias, first.training, first.momentum, first.eps)
    if first.training:
        for norm, new_mean, new_var in zip(norms, mean.chunk(len(norms)), var.chunk(len(norms)), strict=True):
            norm.running_mean.copy_(new_mean)
            norm.running_var.copy_(new_var)
            norm.num_batches_tracked.add_(1)
    return rows


def _joins(norm: Any, first: Any) -> bool:
    """Whether one pass can do the work of both.

    Not with statistics over all processes (``SyncBatchNorm``), of a cumulative average (momentum None), or
    that are not kept at all: such modules compute for themselves.
    """
    return (
        not isinstance(norm, nn.SyncBatchNorm)
        and norm.running_mean is not None
        and norm.momentum is not None
        and (norm.training, norm.momentum, norm.eps) == (first.training, first.momentum, first.eps)
    )


def _takes_batch_statistics(norm: Any) -> bool:
    return norm.training or norm.running_mean is None


def _product_norm(left: Tensor, right: Tensor, norm: Any) -> Tensor:
    """Batch norm of left @ right, as rows; with running statistics its scale goes into the smaller right."""
    if _takes_batch_statistics(norm):
        return _batch_norm(torch.bmm(left, right).flatten(0, 1), norm)
    scale, shift = _scale_and_shift(norm)
    return torch.bmm(left, right * scale).flatten(0, 1).add_(shift)


def _scale_and_shift(*norms: Any) -> tuple[Tensor, Tensor]:
    """What batch norms do with their running statistics: x -> scale · x + shift, side by side."""
    mean, weight, bias = _side_by_side(norms, "running_mean", "weight", "bias")
    scale = weight * torch.cat([norm.running_var + norm.eps for norm in norms]).rsqrt()
    return scale, bias - mean * scale


def _side_by_side(norms: Sequence[Any], *names: str) -> list[Tensor]:
    return [torch.cat([getattr(norm, name) for norm in norms]) for name in names]
