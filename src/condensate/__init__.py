"""Dataset condensation: any matching objective over any storage of the synthetic images."""

from condensate.errors import UserError

__version__ = "0.1.0"
__all__ = ["UserError", "__version__"]
