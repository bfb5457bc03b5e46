"""Relation-aware global attention (RGA).

Zhang, Lan, Zeng, Jin, Chen: Relation-Aware Global Attention for Person Re-Identification, CVPR 2020,
https://arxiv.org/abs/1904.02998. Equation numbers are the paper's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rga_reid._deprecated import RGA_ARGUMENTS, rename_arguments
from rga_reid.attention.functional import check_map, check_map_size, check_positive, reduce_channels
from rga_reid.attention.trace import Relations, Trace, run_layers


class RGA(nn.Module):
    """Relation-aware global attention: spatial (RGA-S), then channel (RGA-C); both are RGA-SC.

    The importance of a node (a position or a channel) follows from its relations to *all* nodes, in both
    directions, and from its own feature:

        G[i, j] = θ(xᵢ)ᵀ φ(xⱼ)                  relation from i to j; not symmetric             (1)
        rᵢ      = [G[i, :], G[:, i]]            relations from i to all, and from all to i
        yᵢ      = [mean(g(xᵢ)), gg(rᵢ)]         own feature and relation feature                (2)
        aᵢ      = sigmoid(W(yᵢ)),  xᵢ ← aᵢ xᵢ                                                   (3)

    θ, φ, g and gg are 1×1 convolution, batch norm and ReLU. Because gg begins with a linear map [W₁ | W₂], ``forward``
    computes W₁ G[i, :] + W₂ G[:, i] = (W₁ Φᵀ) θᵢ + (W₂ Θᵀ) φᵢ without the N×N matrix, with the same parameters and
    the same result.

    Weights over positions (the inputs of gg in RGA-S, of θ, φ and g in RGA-C) are maps of ``size``. ``set_map_size``
    interpolates them in every forward, ``resize`` permanently.

    Args:
        in_channels: channels C.
        size: (H, W) of the maps; N = H·W positions.
        spatial: scale positions (RGA-S).
        channel: scale channels (RGA-C).
        channel_ratio: C-vectors are embedded in C // channel_ratio features.
        spatial_ratio: N-vectors are embedded in N // spatial_ratio features, at least 1.
        down_ratio: reduction inside W, to at least 1 feature.
        zero_init_gate: initialise the weight of W's last batch norm with 0, so that the attention of all nodes
            starts at ½. The published code starts with 1, that is with random attention, which slows the training of
            a backbone with random weights.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: neither ``spatial`` nor ``channel``, or an option out of range; in ``forward`` and
            ``relations``, a tensor of another shape or not of floating point.
    """

    @rename_arguments(**RGA_ARGUMENTS)
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
        zero_init_gate: bool = False,
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
            self.W_spatial = _gate(1 + inner_s, down_ratio)
            self.theta_spatial = _embedding(in_channels, inner_c)
            self.phi_spatial = _embedding(in_channels, inner_c)
        if channel:
            self.gx_channel = _embedding(positions, inner_s)
            self.gg_channel = _embedding(2 * in_channels, inner_c)
            self.W_channel = _gate(1 + inner_c, down_ratio)
            self.theta_channel = _embedding(positions, inner_s)
            self.phi_channel = _embedding(positions, inner_s)
        if zero_init_gate:
            for kind in ("spatial",) * spatial + ("channel",) * channel:
                nn.init.zeros_(getattr(self, f"W_{kind}")[4].weight)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the positions, the channels, or both, without relation matrices."""
        self._check(x)
        if self.spatial:
            a = self._attention(x.flatten(2).mT, "spatial")
            x = x * a.view(x.shape[0], 1, *self.map_size)
        if self.channel:
            a = self._attention(x.flatten(2), "channel")
            x = x * a.view(x.shape[0], self.in_channels, 1, 1)
        return x

    def _attention(self, nodes: Tensor, kind: str) -> Tensor:
        """Return the attention (B, M) of M nodes with F features (B, M, F), which are positions or channels."""
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

        # the first layer of W on [own, related], without concatenating them
        first = W[0].weight.flatten(1)
        y = torch.addmm(own.mean(2).view(-1, 1) * first[:, 0], related, first[:, 1:].T)
        y = F.linear(F.relu_(_batch_norm(y, W[1])), W[3].weight.flatten(1))
        return torch.sigmoid(_batch_norm(y, W[4])).view(b, m)

    def relations(self, x: Tensor) -> Relations:
        """Return the explicit form with matrices ``spatial`` (B, N, N) and ``channel`` (B, C, C).

        Entry [b, i, j] is G[i, j] = θ(xᵢ)ᵀ φ(xⱼ), the relation from node i to node j.
        """
        self._check(x)
        return Relations.of(self._explicit, x)

    def _explicit(self, x: Tensor, trace: Trace) -> Tensor:
        if self.spatial:
            a = self._explicit_attention(x.flatten(2).unsqueeze(3), "spatial", "_s", "x", trace)
            shape = (x.shape[0], 1, *self.map_size)
            a = trace.weight("spatial", "a_s", "attention of each position", "sigmoid(W(y_s))", a.view(shape))
            x = trace.step("x_s", "map with weighted positions", "a_s · x", x * a)
        if self.channel:
            source = "x_s" if self.spatial else "x"
            a = self._explicit_attention(x.flatten(2).mT.unsqueeze(3), "channel", "_c", source, trace)
            shape = (x.shape[0], self.in_channels, 1, 1)
            a = trace.weight("channel", "a_c", "attention of each channel", "sigmoid(W(y_c))", a.view(shape))
            x = trace.step("x_c", "map with weighted channels", f"a_c · {source}", x * a)
        return x

    def _explicit_attention(self, nodes: Tensor, kind: str, sub: str, source: str, trace: Trace) -> Tensor:
        """Return the attention (B, 1, M, 1) of nodes (B, F, M, 1) of the map ``source``, by the paper's equations."""
        node = "position" if kind == "spatial" else "channel"

        def embed(name: str, x: Tensor) -> Tensor:
            weight = self._weight(name, kind)[:, :, None, None]
            return run_layers(getattr(self, f"{name}_{kind}"), x, weight)

        t = trace.step(f"θ{sub}", f"each {node} as it looks at others", f"θ({source})", embed("theta", nodes))
        p = trace.step(f"φ{sub}", f"each {node} as it is looked at", f"φ({source})", embed("phi", nodes))
        G = trace.matrix(
            kind,
            f"G{sub}",
            f"relations between {node}s: row i has those from i to all",
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
        """Take maps of ``size`` from now on, without changing the parameters, which stay maps of ``self.size``.

        Every forward interpolates the weights over positions (differentiably) and scales them by N / N', so
        that sums over positions keep their magnitude. ``set_map_size(self.size)`` restores the original.
        """
        self.map_size = check_map_size(size)

    @torch.no_grad()
    def resize(self, size: Sequence[int]) -> None:
        """Change the parameters to maps of ``size``, by the interpolation of ``set_map_size``.

        The weights over positions become new parameters, so build optimisers afterwards.
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

    def fold(self) -> nn.Module:
        """Return the same attention for inference on maps of ``map_size``, with batch norms folded into the weights."""
        return _FoldedRGA(self)

    def _layers(self, kind: str) -> list[Any]:
        return [getattr(self, f"{name}_{kind}") for name in ("gx", "gg", "W", "theta", "phi")]

    def _weight(self, name: str, kind: str) -> Tensor:
        """Return the 1×1 convolution of an embedding as a matrix (outputs, inputs), for the current map size."""
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


class _FoldedRGA(nn.Module):
    """RGA with running statistics, for maps of one size. Products of parameters are computed in float64."""

    def __init__(self, module: RGA) -> None:
        super().__init__()
        self.map_size = module.map_size
        wide = copy.deepcopy(module).double()
        self.spatial = _FoldedAttention(wide, "spatial") if module.spatial else None
        self.channel = _FoldedAttention(wide, "channel") if module.channel else None
        self.to(next(module.parameters()).dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the positions, the channels, or both."""
        if self.spatial is not None:
            x = x * self.spatial(x.flatten(2).mT).view(x.shape[0], 1, *self.map_size)
        if self.channel is not None:
            x = x * self.channel(x.flatten(2)).view(*x.shape[:2], 1, 1)
        return x


class _FoldedAttention(nn.Module):
    """``RGA._attention`` for running statistics, with products of parameters computed once."""

    embed: Tensor
    embed_bias: Tensor
    relate: Tensor
    relate_bias: Tensor
    own: Tensor
    related: Tensor
    first_bias: Tensor
    last: Tensor
    last_bias: Tensor

    @torch.no_grad()
    def __init__(self, module: RGA, kind: str) -> None:
        super().__init__()
        g, gg, W, theta, phi = module._layers(kind)
        weight = torch.cat([module._weight(name, kind) for name in ("phi", "theta", "gx")])
        e = weight.shape[0] // 3
        scale, embed_bias = _scale_and_shift(phi[1], theta[1], g[1])
        relate_scale, relate_bias = _scale_and_shift(gg[1])
        relate = module._weight("gg", kind).unflatten(1, (2, -1)) * relate_scale[:, None, None]
        first_scale, first_bias = _scale_and_shift(W[1])
        first = W[0].weight.flatten(1) * first_scale[:, None]
        last_scale, last_bias = _scale_and_shift(W[4])
        for name, value in {
            "embed": weight * scale[:, None],
            "embed_bias": embed_bias,
            "relate": relate.transpose(0, 1).flip(0),  # W₂, W₁
            "relate_bias": relate_bias,
            "own": first[:, :1].expand(-1, e) / e,  # takes the mean over features, too
            "related": first[:, 1:],
            "first_bias": first_bias,
            "last": W[3].weight.flatten(1) * last_scale,
            "last_bias": last_bias,
        }.items():
            self.register_buffer(name, value.contiguous())

    def forward(self, nodes: Tensor) -> Tensor:
        """Return the attention (B·M, 1) of M nodes with F features (B, M, F)."""
        b, m, _ = nodes.shape
        rows = F.relu_(_project(nodes, self.embed, self.embed_bias))
        e = rows.shape[1] // 3
        phi_theta = rows[:, : 2 * e].view(b, m, 2 * e)
        phi, theta = phi_theta.split(e, dim=2)
        columns = torch.stack([theta.transpose(0, 1), phi.transpose(0, 1)]).view(2, m, b * e)
        mixed = torch.bmm(self.relate, columns).unflatten(2, (b, e)).permute(2, 0, 3, 1)  # W₂ Θᵀ, W₁ Φᵀ
        mixed = mixed.reshape(b, 2 * e, -1)
        related = F.relu_(torch.baddbmm(self.relate_bias, phi_theta, mixed)).flatten(0, 1)
        y = torch.addmm(self.first_bias, rows[:, 2 * e :], self.own.T)
        y = F.relu_(torch.addmm(y, related, self.related.T))
        return torch.addmm(self.last_bias, y, self.last.T).sigmoid_()


def _embedding(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _gate(inputs: int, down_ratio: int) -> nn.Sequential:
    hidden = max(1, inputs // down_ratio)
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, 1, 1, bias=False),
        nn.BatchNorm2d(1),
    )


_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # since torch 2.7


def _embed(nodes: Tensor, weight: Tensor, *norms: Any) -> Tensor:
    """Return nodes (B, M, F) times weight (outputs, F) as rows, batch-normalised by ``norms`` side by side."""
    if any(map(_uses_batch_statistics, norms)):
        return _batch_norm(_project(nodes, weight), *norms)
    scale, shift = _scale_and_shift(*norms)
    return _project(nodes, weight * scale[:, None], shift)


def _project(nodes: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return nodes (B, M, F) times weight (outputs, F) as rows (B·M, outputs), in any memory layout.

    One product over all rows is fastest, forward and backward, but copies nodes whose features are not contiguous. A
    product per image copies the smaller result instead, but its backward computes one gradient of the weight per
    image, which is slow for many features. Exported graphs have one product: ``expand`` would compute shapes in them.
    """
    b, m, features = nodes.shape
    if nodes.stride(2) == 1 or features > m or _is_exporting():
        return F.linear(nodes.reshape(b * m, features), weight, bias)
    columns = torch.bmm(weight.expand(b, -1, -1), nodes.mT)
    if bias is not None:
        columns = columns.add_(bias[:, None])
    return columns.mT.reshape(b * m, -1)


def _batch_norm(rows: Tensor, *norms: Any) -> Tensor:
    """Return rows (n, features) batch-normalised by ``norms`` side by side, in one pass if possible."""
    first = norms[0]
    if not all(_can_join(norm, first) for norm in norms):
        parts = rows.split([norm.num_features for norm in norms], dim=1)
        pairs = zip(norms, parts, strict=True)
        return torch.cat([norm(part[:, :, None, None]).flatten(1) for norm, part in pairs], dim=1)
    mean, var, weight, bias = _concatenate(norms, "running_mean", "running_var", "weight", "bias")
    rows = F.batch_norm(rows, mean, var, weight, bias, first.training, first.momentum, first.eps)
    if first.training:
        for norm, new_mean, new_var in zip(norms, mean.chunk(len(norms)), var.chunk(len(norms)), strict=True):
            norm.running_mean.copy_(new_mean)
            norm.running_var.copy_(new_var)
            norm.num_batches_tracked.add_(1)
    return rows


def _can_join(norm: Any, first: Any) -> bool:
    """Return whether one pass can compute both norms.

    Statistics over all processes (``SyncBatchNorm``), a cumulative average (momentum None) and untracked statistics
    need the module's own forward.
    """
    return (
        not isinstance(norm, nn.SyncBatchNorm)
        and norm.running_mean is not None
        and norm.momentum is not None
        and (norm.training, norm.momentum, norm.eps) == (first.training, first.momentum, first.eps)
    )


def _uses_batch_statistics(norm: Any) -> bool:
    return norm.training or norm.running_mean is None


def _product_norm(left: Tensor, right: Tensor, norm: Any) -> Tensor:
    """Return left @ right as rows, batch-normalised; running statistics are folded into the smaller right."""
    if _uses_batch_statistics(norm):
        return _batch_norm(torch.bmm(left, right).flatten(0, 1), norm)
    scale, shift = _scale_and_shift(norm)
    return torch.bmm(left, right * scale).flatten(0, 1).add_(shift)


def _scale_and_shift(*norms: Any) -> tuple[Tensor, Tensor]:
    """Return scale and shift of batch norms with running statistics, x -> scale · x + shift, side by side."""
    mean, weight, bias = _concatenate(norms, "running_mean", "weight", "bias")
    scale = weight * torch.cat([norm.running_var + norm.eps for norm in norms]).rsqrt()
    return scale, bias - mean * scale


def _concatenate(norms: Sequence[Any], *names: str) -> list[Tensor]:
    return [torch.cat([getattr(norm, name) for norm in norms]) for name in names]
