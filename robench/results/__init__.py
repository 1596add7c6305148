"""The store: records on disk, written atomically, checked on reading, shared by processes."""

from robench.results.panels import SamplePanel
from robench.results.store import Problem, Scan, Store
from robench.results.stored_record import RecordFilter, StoredRecord
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
