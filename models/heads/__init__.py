"""Detection heads: what a network's outputs mean, one class a kind."""
from models.heads.anchor import AnchorHead
from models.heads.base import Head

HEADS: dict[str, type[Head]] = {head.kind: head for head in (AnchorHead,)}
