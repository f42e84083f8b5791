"""A signal store as a source of rows for the loader."""

from collections.abc import Sequence

from limbeck.data.packing import Piece
from limbeck.data.token_store import TokenStore
from limbeck.signals.store import SignalStore
from limbeck.signals.types import SignalRows
from limbeck.spec.signal import StoredSignal


class StoreRows:
    """A `RowSource` that reads a signal store. Every row's check is compared with the tokens of the batch it is read for."""

    def __init__(self, signals: SignalStore, tokens: TokenStore, *, signal: StoredSignal) -> None:
        self.signals, self.tokens, self.signal = signals, tokens, signal

    @property
    def is_live(self) -> bool:
        """False: nothing is computed."""
        return False

    @property
    def bytes_read(self) -> int:
        """Bytes of the store read so far."""
        return self.signals.bytes_read

    @property
    def tokens_scored(self) -> int:
        """None: no teacher runs."""
        return 0

    def rows(self, pieces: Sequence[Piece]) -> SignalRows:
        """The stored rows at every position of the pieces."""
        wanted = [(self.tokens.ids[piece.document], piece.start, piece.stop) for piece in pieces]
        tokens = [self.tokens.document(piece.document)[piece.start : piece.stop + 1] for piece in pieces]
        return self.signals.read(wanted, tokens=tokens, signal=self.signal)
