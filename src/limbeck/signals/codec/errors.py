"""What the codec raises."""


class DamagedRowsError(Exception):
    """Bytes that no rows encode to; the store adds where they are."""
