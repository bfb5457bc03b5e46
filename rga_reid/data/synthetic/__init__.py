"""A data set of drawn pedestrians in the layout of Market-1501: what the demonstration trains on.

Everything is drawn by code, from a seed: no photograph, no download. See ``write_synthetic``.
"""

from rga_reid.data.synthetic.dataset import SyntheticSettings, write_synthetic

__all__ = ["SyntheticSettings", "write_synthetic"]
