"""Names that `journey.engine.store` has."""

from journey.engine.store import MANIFEST, StoreError, differences

__all__ = ["MANIFEST", "StoreError", "differences"]
