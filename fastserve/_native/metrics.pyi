"""What a core counts, read from the memory that it shares (csrc/metrics.h), without the core noticing.

Times are microseconds. A histogram knows a value to 1 %; times that were measured as differences of
microseconds are whole numbers of them.
"""

from collections.abc import Iterable, Mapping, Sequence

class Histogram:
    """Counts of values, of one moment; it does not change."""

    @property
    def count(self) -> int:
        """How many values there are."""
    @property
    def sum(self) -> float:
        """Of all values, exactly. Counted beside the slots: it may be of a moment later or earlier."""
    @staticmethod
    def of(values: Iterable[float], unit: float = 1e-3) -> Histogram:
        """One of these values, as it would be counted: for tests, and for what this process measures. unit:
        of times as here, or 1.0: of whole numbers. Raises ValueError when one is negative."""
    def quantile(self, q: float) -> float:
        """The value that the share `q` (0 to 1) of all is not above, to 1 %; 0.0 when there is none."""
    def quantiles(self, qs: Sequence[float]) -> list[float]: ...
    def cumulative(self, bounds: Sequence[float]) -> list[int]:
        """How many values are at most each of `bounds`, which rise: where one falls into a slot, by its
        middle."""
    def items(self) -> list[tuple[float, float, int]]:
        """(least, greatest, how many) of every slot that is not empty, in rising order."""
    def minus(self, other: Histogram) -> Histogram:
        """What has come since `other`, an earlier one of the same series."""
    def plus(self, other: Histogram) -> Histogram:
        """The values of both, which have the same unit."""

class Series:
    """One signature of one version, since it was loaded. Of what found no place (thousands of signatures at
    once) all is in one series whose model and signature are "", and so is, with the model's name, what is
    SessionRun's."""

    model: str
    version: int | None  # None: of several, see plus
    signature: str
    closed: bool  # the version is closed; what is counted is final but for answers on their way
    serial: int  # of no other series of this core
    # By (method, transport, code): "Predict", "grpc", "OK". What has come home, or was refused.
    requests: dict[tuple[str, str, str], int]
    # By (method, transport), of requests that ran: from complete to answered.
    latency: dict[tuple[str, str], Histogram]
    # By method, of the same requests: how many rows they had, or Examples.
    request_rows: dict[str, Histogram]
    queue: Histogram  # of each call that ran, until it was taken for a batch
    formation: Histogram  # of each batch, from then until it ran
    compute: Histogram
    encode: Histogram
    batch_rows: Histogram
    # By what batches were filled up to; 0: those that ran as they were. A value is counted as the next power
    # of two.
    padding: dict[int, Histogram]
    # Calls that left the queue without having run.
    expired: int
    cancelled: int
    shed: int
    # In the queue now.
    waiting_calls: int
    waiting_rows: int

    def __init__(
        self,
        model: str,
        version: int | None,
        signature: str,
        *,
        closed: bool = False,
        serial: int = 0,
        requests: Mapping[tuple[str, str, str], int] | None = None,
        latency: Mapping[tuple[str, str], Histogram] | None = None,
        request_rows: Mapping[str, Histogram] | None = None,
        queue: Histogram | None = None,
        formation: Histogram | None = None,
        compute: Histogram | None = None,
        encode: Histogram | None = None,
        batch_rows: Histogram | None = None,
        padding: Mapping[int, Histogram] | None = None,
        expired: int = 0,
        cancelled: int = 0,
        shed: int = 0,
        waiting_calls: int = 0,
        waiting_rows: int = 0,
    ) -> None: ...
    @property
    def rows(self) -> int:
        """In all batches, without padding."""
    @property
    def batches(self) -> int: ...
    @property
    def padding_rows(self) -> int:
        """That filled all batches up."""
    def plus(self, other: Series, version: int | None = None) -> Series:
        """Both together, under this one's model and signature."""

class MetricsSnapshot:
    """What was read at one time. Sums that belong together may differ by what was going on meanwhile."""

    unresolved: dict[
        tuple[str, str, str], int
    ]  # requests that no series stands for: unknown model, malformed
    series: list[Series]

    def __init__(
        self, unresolved: Mapping[tuple[str, str, str], int] | None = None, series: Iterable[Series] = ()
    ) -> None: ...

class Metrics:
    """A reader of one core's memory. `fd` stays the caller's, and may be closed. Raises ValueError when it is
    no such memory."""

    def __init__(self, fd: int) -> None: ...
    def read(self) -> MetricsSnapshot:
        """Empty before the core has begun. ValueError when it is of another version's core."""
