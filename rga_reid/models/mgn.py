"""Multiple Granularity Network: three branches that pool the whole map, its halves and its thirds.

Wang, Yuan, Chen, Li, Zhou: Learning Discriminative Features with Multiple Granularities for Person Re-Identification,
ACM Multimedia 2018, arXiv 1804.01438, as fast-reid builds it on a ResNet-50: each branch pools its whole map, too.
Converted weights use it; this package does not train it with a loss for each part, as the paper does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rga_reid.errors import InputError
from rga_reid.models.backbone import AttentionFactory, Backbone, Size
from rga_reid.models.embedding import GeM
from rga_reid.models.resnet import ResNet

PART_DIM = 256  #: features of each part
#: branch -> horizontal stripes of its map
BRANCHES = (1, 2, 3)
#: parts in the order of the embedding: branch, stripe (0 for the whole map)
PARTS = ((1, 0), (2, 0), (3, 0), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3))
MIN_ROWS = 5  #: rows of the last map; ``torch.chunk`` makes only two parts of 4 rows


class MGN(Backbone):
    """``(n, 3, H, W) -> (n, 2048, 1, 1)``: 256 features of each of the 8 parts. It has no attention slots.

    Args:
        size: input (H, W) in pixels.
        last_stride: stride of the last stage of branch 1; the other branches have 1.
        ibn: IBN-a in stages 1 to 3.
        gem: pool by ``GeM``, with an exponent for each part, instead of the mean.

    Raises:
        InputError: attention is given, or the map is too small.
    """

    channels = PART_DIM * len(PARTS)

    def __init__(
        self,
        attention: AttentionFactory | None = None,
        size: Size = (384, 128),
        last_stride: int = 1,
        *,
        ibn: bool = False,
        gem: bool = False,
    ) -> None:
        super().__init__("mgn_resnet50", size, last_stride)
        self.map_sizes(self.size)
        self.add_attention(attention, None, [])
        trunk = ResNet(50, size=size, last_stride=last_stride, stem_pool="ceil", ibn=ibn)
        self.stem = nn.Sequential(trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool)
        self.layer1, self.layer2, self.layer3 = trunk.layer1, trunk.layer2, trunk.layer3[:1]
        for branch in BRANCHES:
            stride = last_stride if branch == 1 else 1
            body = ResNet(50, size=size, last_stride=stride, ibn=ibn)
            setattr(self, f"branch{branch}", nn.Sequential(nn.Sequential(*body.layer3[1:]), body.layer4))
        self.pools = nn.ModuleList(GeM() for _ in PARTS) if gem else None
        self.reductions = nn.ModuleList(nn.Linear(2048, PART_DIM, bias=False) for _ in PARTS)
        for reduction in self.reductions:
            assert isinstance(reduction, nn.Linear)
            nn.init.kaiming_normal_(reduction.weight, mode="fan_out")

    @property
    def title(self) -> str:
        """Name for people to read."""
        return "MGN (ResNet-50)"

    def map_sizes(self, size: Size) -> list[Size]:
        """Return the (H, W) of the output, which is one position."""
        rows = ((size[0] + 1) // 2 // 2 + 3) // 4
        if rows < MIN_ROWS:
            raise InputError(
                f"size: mgn_resnet50 needs a map of {MIN_ROWS} rows (image of 67), got {size[0]}"
            )
        return [(1, 1)]

    def parts(self) -> list[tuple[str, list[str]]]:
        """Return the name of each part and its submodules, for costs."""
        return [
            ("stem", ["stem"]),
            ("trunk", ["layer1", "layer2", "layer3"]),
            *((f"branch {branch}", [f"branch{branch}"]) for branch in BRANCHES),
            ("head", ["reductions"]),
        ]

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of all parts ``(n, 2048, 1, 1)`` of normalised float images ``(n, 3, H, W)``."""
        x = self.stem(images)
        for layer in (self.layer1, self.layer2, self.layer3):
            x = self.run_stage(layer, (layer,), x)
        maps: dict[tuple[int, int], Tensor] = {}
        for branch in BRANCHES:
            layer = getattr(self, f"branch{branch}")
            maps[branch, 0] = self.run_stage(layer, (layer,), x)
            stripes = maps[branch, 0].chunk(branch, 2) if branch > 1 else ()
            maps |= {(branch, number): stripe for number, stripe in enumerate(stripes, 1)}
        pooled = [
            maps[part].mean((2, 3)) if self.pools is None else self.pools[number](maps[part]).flatten(1)
            for number, part in enumerate(PARTS)
        ]
        reduced = [reduce(one) for reduce, one in zip(self.reductions, pooled, strict=True)]
        return torch.cat(reduced, 1)[:, :, None, None]
