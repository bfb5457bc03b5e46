"""Names of the 1.0 package, which is now ``rga_reid.gallery`` and ``rga_reid.inference``."""

from rga_reid._deprecated import ALIASES, module_getattr

__all__ = list(ALIASES["rga_reid.retrieval"])
__getattr__ = module_getattr(__name__)
