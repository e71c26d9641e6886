"""Detection heads: what outputs mean, one class a kind. A kind is known once its module is imported."""
from models.heads import anchor, free, yolox  # noqa: F401
from models.heads.base import HEADS, Head

__all__ = ["HEADS", "Head"]
