"""The store: records on disk, written atomically, checked on reading, shared by processes."""

from typing import TYPE_CHECKING

from robench.registry import lazily

if TYPE_CHECKING:
    from robench.results.panels import SamplePanel
    from robench.results.record_filter import RecordFilter
    from robench.results.store import Problem, Scan, Store
    from robench.results.stored_record import StoredRecord
    from robench.results.tables import samples_to_table, table_to_samples

__all__ = [
    "Problem",
    "RecordFilter",
    "SamplePanel",
    "Scan",
    "Store",
    "StoredRecord",
    "samples_to_table",
    "table_to_samples",
]

# pandas and pyarrow take most of a second, and what says which records are wanted needs neither.
__getattr__ = lazily(
    __name__,
    {
        "panels": ("SamplePanel",),
        "record_filter": ("RecordFilter",),
        "store": ("Problem", "Scan", "Store"),
        "stored_record": ("StoredRecord",),
        "tables": ("samples_to_table", "table_to_samples"),
    },
)
