from __future__ import annotations

import errno
import itertools
import json
import math
import os
import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fresh_process import PROCESSES, in_a_fresh_process
from hypothesis import given, settings
from hypothesis import strategies as st
from record_factory import make_record, make_samples

from robench import files
from robench.errors import CorruptRecordError, StoreError, UsageError
from robench.records import MetricSummary, Outcome, SampleOutcome
from robench.results import Store, samples_to_table, table_to_samples
from robench.results.tables import SampleRows, parquet_bytes, table_from_parquet

KEY = "ab" * 32
INT64 = st.integers(-(2**63), 2**63 - 1)
REALS = st.floats(allow_nan=True, allow_infinity=True)
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
SAMPLES = st.lists(
    st.builds(
        SampleOutcome,
        sample_id=TEXT,
        label=INT64,
        # Nobody is at a target of a record that has none.
        outcome=st.sampled_from(sorted(set(Outcome) - {Outcome.AT_TARGET})),
        clean_prediction=st.none() | INT64,
        clean_margin=st.none() | REALS,
        adv_prediction=st.none() | INT64,
        adv_margin=st.none() | REALS,
        broken_by=st.none() | TEXT,
        perturbation_size=st.none() | REALS,
        forwards=INT64,
        backwards=INT64,
        message=st.none() | TEXT,
        values=st.dictionaries(TEXT.map("metric_{}".format), REALS, max_size=4),
    ),
    max_size=8,
    unique_by=lambda s: s.sample_id,
)


def plain(samples: list[SampleOutcome]) -> list[str]:
    """A form in which NaN equals NaN and -0.0 differs from 0.0."""
    return [repr({**s.model_dump(), "values": sorted(s.values.items())}) for s in samples]


def consistent(sample: SampleOutcome) -> SampleOutcome:
    """The same with one of two labels, and all else that its outcome and the ball allow."""
    label, broken = sample.label % 2, sample.outcome is Outcome.BROKEN
    clean = {Outcome.CLEAN_ERROR: 1 - label, Outcome.ERRORED: None}.get(sample.outcome, label)
    margin, size = sample.clean_margin, sample.perturbation_size
    fits = clean is None or margin is None or (margin >= 0) == (clean == label)
    return sample.model_copy(
        update={
            "label": label,
            "clean_prediction": clean,
            "clean_margin": margin if fits else -margin,
            "adv_prediction": 1 - label if broken else None,
            "adv_margin": None if sample.adv_margin is None else -abs(sample.adv_margin),
            "broken_by": "toy" if broken else None,
            "perturbation_size": None if size is None else min(size, 0.2),
            "forwards": sample.forwards % 2**48,
            "backwards": sample.backwards % 2**48,
        }
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def write(store: Store, letters: str = "CBSE", **kwargs: object) -> str:
    samples = make_samples(letters)
    record = make_record(samples, **kwargs)  # type: ignore[arg-type]
    store.write(record, samples)
    return record.key


# --- round trip ----------------------------------------------------------------------------


@settings(deadline=None)
@given(SAMPLES)
def test_any_samples_come_back_from_parquet_as_they_were(samples: list[SampleOutcome]) -> None:
    table = table_from_parquet(parquet_bytes(samples_to_table(samples)))
    assert plain(table_to_samples(table)) == plain(samples)


@settings(deadline=None)
@given(SAMPLES.filter(bool))
def test_any_record_comes_back_from_disk_as_it_was(samples: list[SampleOutcome]) -> None:
    samples = [consistent(sample) for sample in samples]
    record = make_record(samples)
    with tempfile.TemporaryDirectory() as folder:
        Store(folder).write(record, samples)
        read = Store(folder).read(record.key)
    assert read.record == record
    assert plain(read.samples) == plain(samples)


def test_large_tables_are_made_and_read_some_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if they were made at once; what a part of the rows lacks, only these lack."""
    values = {"attention_shift": [0.1, math.nan, 0.3, 0.4, 0.5]}
    samples = make_samples("CBSSE", values=values)
    samples[2] = samples[2].model_copy(update={"values": {"deviation": 2.0}})
    whole = samples_to_table(samples)
    monkeypatch.setattr("robench.results.tables._AT_A_TIME", 2)
    rows = SampleRows.of(iter(samples))
    assert parquet_bytes(rows.table) == parquet_bytes(whole)
    assert plain(list(rows)) == plain(samples)
    assert plain(rows.at([4, 1])) == plain([samples[4], samples[1]])
    assert plain(list(rows.of_outcome(Outcome.SURVIVED))) == plain(samples[2:4])
    assert rows.counts() == {"clean_error": 1, "broken": 1, "survived": 2, "errored": 1}
    assert (len(rows), samples_to_table(rows) is rows.table) == (5, True)
    with pytest.raises(StoreError, match="occurs twice"):
        SampleRows.of([*samples, samples[0]])
    label = rows.table.column_names.index("label")
    lacking = rows.table.set_column(label, "label", pa.array([0, 0, 0, None, 0]))
    with pytest.raises(CorruptRecordError, match="row 3 of the table"):
        list(SampleRows(lacking))


def test_same_content_gives_same_bytes(tmp_path: Path) -> None:
    samples = make_samples("CBSE", values={"attention_shift": [0.1, math.nan, 0.3, 0.4]})
    arrays = {"maps": np.arange(8.0).reshape(2, 4)}
    adversarial = np.ones((4, 1, 2, 2))
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        Store(folder).write(make_record(samples), samples, adversarial=adversarial, arrays=arrays)
        time.sleep(0.01)
    one, two = (
        {p.relative_to(f): p.read_bytes() for p in sorted(f.rglob("*")) if p.is_file()}
        for f in folders
    )
    assert len(one) == 3
    assert one == two


def test_arrays_come_back(store: Store) -> None:
    samples = make_samples("BS")
    record = make_record(samples)
    adversarial = np.random.default_rng(0).random((2, 1, 3, 3), dtype=np.float32)
    store.write(record, samples, adversarial=adversarial, arrays={"maps": np.eye(2)})
    np.testing.assert_array_equal(store.adversarial_rows(record.key)[:], adversarial)
    np.testing.assert_array_equal(store.read_arrays(record.key)["maps"], np.eye(2))
    assert store.read(record.key).arrays_path is not None


def test_no_arrays_is_said(store: Store) -> None:
    key = write(store)
    assert store.read_arrays(key) == {}
    with pytest.raises(StoreError, match="--save-adversarial"):
        store.adversarial_rows(key)[:]


def test_undefined_figures_become_none(store: Store) -> None:
    samples = make_samples("B")
    record = make_record(samples, metrics={"alignment": MetricSummary(mean=math.nan, n=0)})
    record = record.model_copy(update={"class_robust_acc": {"class 0": 0.0, "class 1": math.nan}})
    store.write(record, samples)
    read = store.read(record.key).record
    assert read.metrics["alignment"].mean is None
    assert read.class_robust_acc == {"class 0": 0.0}
    assert "NaN" not in store.path_of(record.key).read_text()


def test_frame_keeps_whole_numbers_and_gaps(store: Store) -> None:
    frame = store.read(write(store, "CBSE")).table
    assert list(frame["outcome"]) == ["clean_error", "broken", "survived", "errored"]
    assert str(frame["adv_prediction"].dtype) == "Int64"
    assert list(frame["adv_prediction"].isna()) == [True, False, False, True]
    assert math.isnan(frame["adv_margin"].iloc[0])


def test_rewriting_replaces(store: Store) -> None:
    samples = make_samples("BB")
    record = make_record(samples)
    store.write(record, samples)
    better = make_samples("BS")
    store.write(make_record(better), better)
    assert store.read(record.key).samples == better
    assert len(store.prune(older_than=0)) == 1
    assert store.read(record.key).samples == better


def test_contradictions_are_refused(store: Store) -> None:
    samples = make_samples("BS")
    with pytest.raises(StoreError, match="counts"):
        store.write(make_record(samples), make_samples("BB"))
    with pytest.raises(StoreError, match="3 adversarial inputs for 2 samples"):
        store.write(make_record(samples), samples, adversarial=np.zeros((3, 1, 2, 2)))
    twice = [samples[0], samples[0]]
    with pytest.raises(StoreError, match="occurs twice"):
        store.write(make_record(twice), twice)
    clash = [samples[0].model_copy(update={"values": {"label": 1.0}})]
    with pytest.raises(StoreError, match="fixed column"):
        store.write(make_record(clash), clash)
    large = [samples[0].model_copy(update={"label": 2**64})]
    with pytest.raises(StoreError, match="label"):
        store.write(make_record(large), large)
    assert not store.folder.exists()


def test_records_are_listed_in_order(store: Store) -> None:
    keys = sorted(write(store, model=name) for name in "abcdef")
    assert store.keys() == keys
    assert [stored.record.key for stored in store.records()] == keys


@pytest.mark.parametrize("key", ["", "abc", "../" * 20 + "ab", "AB" * 32])
def test_strange_keys_are_refused(store: Store, key: str) -> None:
    with pytest.raises(UsageError, match="not a record key"):
        store.has(key)


def test_absent_record_is_said(store: Store) -> None:
    assert not store.has(KEY)
    assert store.keys() == []
    with pytest.raises(StoreError, match="no such record"):
        store.read(KEY)


# --- damage --------------------------------------------------------------------------------


def files_of(store: Store) -> list[Path]:
    return sorted(p for p in (store.folder / "records").rglob("*") if p.is_file())


def test_every_flipped_bit_and_truncation_is_noticed(store: Store) -> None:
    samples = make_samples("CBSE")
    record = make_record(samples)
    store.write(record, samples, adversarial=np.linspace(0, 1, 16).reshape(4, 1, 2, 2))
    before = store.read(record.key)
    images = store.adversarial_rows(record.key)[:]
    rng = np.random.default_rng(1)
    for path in files_of(store):
        good = path.read_bytes()
        for _ in range(20):
            bad = bytearray(good)
            bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
            path.write_bytes(bytes(bad))
            try:
                same = store.read(record.key).record == before.record
                np.testing.assert_array_equal(store.adversarial_rows(record.key)[:], images)
            except CorruptRecordError:
                continue
            # Layout between JSON's tokens may change without changing what it says.
            assert same
            assert path.suffix == ".json"
            assert json.loads(bytes(bad)) == json.loads(good)
        for length in (0, 1, len(good) // 2, len(good) - 2):
            path.write_bytes(good[:length])
            with pytest.raises(CorruptRecordError):
                (store.read(record.key), store.adversarial_rows(record.key)[:])
        path.unlink()
        with pytest.raises(StoreError):
            (store.read(record.key), store.adversarial_rows(record.key)[:])
        path.write_bytes(good)


def test_arrays_are_sized_on_reading_and_summed_on_verifying(store: Store) -> None:
    samples = make_samples("BS")
    record = make_record(samples)
    path = store.write(record, samples, adversarial=np.ones((2, 1, 2, 2))).arrays_path
    assert path is not None
    store.verify(record.key)
    good = path.read_bytes()
    path.write_bytes(good[:40] + bytes([good[40] ^ 1]) + good[41:])
    assert store.read(record.key).record == record
    with pytest.raises(CorruptRecordError, match="checksum"):
        store.verify(record.key)
    path.write_bytes(good[:-1])
    with pytest.raises(CorruptRecordError, match="bytes instead of"):
        store.read(record.key)
    path.unlink()
    with pytest.raises(CorruptRecordError, match="missing"):
        store.read(record.key)


def test_damaged_record_is_set_aside_whole_and_never_deleted(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    key, sound = write(store, model="a"), write(store, model="b")
    path = store.path_of(key)
    path.write_bytes(path.read_bytes()[:-20])
    scan = store.scan()
    assert [s.record.key for s in scan.records] == [sound]
    assert [p.key for p in scan.problems] == [key]
    assert [s.record.key for s in store.records()] == [sound]
    assert "left out" in caplog.text
    folders = set()
    for round_number in (1, 2):
        folder = store.set_aside(key, "checksum is wrong")
        assert folder is not None
        folders.add(folder)
        assert len(folders) == round_number
        assert len(list(folder.iterdir())) == 3
        assert "checksum" in (folder / "reason.txt").read_text()
        assert not store.has(key)
        assert files_of(store) == files_of(Store(store.folder))
        assert store.set_aside(key, "again") is None
        write(store, model="a")


def test_record_under_a_foreign_name_is_refused(store: Store) -> None:
    key = write(store)
    other = store.path_of(KEY)
    other.parent.mkdir(parents=True, exist_ok=True)
    store.path_of(key).rename(other)
    with pytest.raises(CorruptRecordError, match="file's name"):
        store.read(KEY)


def rewrite_version(store: Store, key: str, version: object) -> None:
    from robench.records import canonical_hash

    path = store.path_of(key)
    document = json.loads(path.read_text())
    document["record"]["schema_version"] = version
    del document["checksum"]
    path.write_text(json.dumps({**document, "checksum": canonical_hash(document)}))


@pytest.mark.parametrize("version, words", [(99, "schema version 99"), (0, "schema version 0")])
def test_unknown_version_is_named_and_refused_but_not_called_corrupt(
    store: Store, version: int, words: str
) -> None:
    key = write(store)
    rewrite_version(store, key, version)
    with pytest.raises(StoreError, match=words) as caught:
        store.read(key)
    assert not isinstance(caught.value, CorruptRecordError)
    assert str(store.path_of(key)) in str(caught.value)


def test_a_version_that_is_no_number_is_corrupt(store: Store) -> None:
    key = write(store)
    rewrite_version(store, key, "one")
    with pytest.raises(CorruptRecordError, match="schema_version"):
        store.read(key)


# --- a disk that refuses -------------------------------------------------------------------


def test_full_disk_leaves_nothing_half_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = make_samples("CBSE")
    first = make_record(samples, model="a")
    store.write(first, samples)
    before = {p: p.read_bytes() for p in files_of(store)}
    record = make_record(samples, model="b")
    images = np.zeros((4, 1, 2, 2))
    flush = os.fsync
    for allowed in range(6):
        calls = 0

        def failing(descriptor: int, allowed: int = allowed) -> None:
            nonlocal calls
            calls += 1
            if calls > allowed:
                raise OSError(28, "No space left on device")
            flush(descriptor)

        monkeypatch.setattr(files.os, "fsync", failing)
        with pytest.raises(StoreError, match=r"No space left on device.*Free some space"):
            store.write(record, samples, adversarial=images)
        monkeypatch.setattr(files.os, "fsync", flush)
        # The last flush is that of the folder after the JSON's rename: the record is there.
        if allowed < 5:
            assert {p: p.read_bytes() for p in files_of(store)} == before
    store.write(record, samples, adversarial=images)
    assert store.read(record.key).record == record


def write_beyond_a_limit(folder: str) -> str:
    """What the store says where the kernel itself refuses large files."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    samples = make_samples("BS" * 8)
    noise = np.random.default_rng(0).random((16, 3, 32, 32))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with pytest.raises(StoreError) as raised:
        Store(folder).write(make_record(samples), samples, adversarial=noise)
    return str(raised.value)


def test_real_full_disk(store: Store) -> None:
    said = in_a_fresh_process(write_beyond_a_limit, str(store.folder))
    assert "cannot be written: File too large" in said
    assert files_of(store) == []


def test_file_in_place_of_the_folder(tmp_path: Path) -> None:
    blocker = tmp_path / "results"
    blocker.write_text("not a folder")
    with pytest.raises(StoreError, match="choose another folder"):
        write(Store(blocker))
    with pytest.raises(StoreError, match="choose another folder"):
        Store(blocker).claim(KEY)
    assert blocker.read_text() == "not a folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="permissions"):
            write(Store(tmp_path / "results"))
    finally:
        tmp_path.chmod(0o700)


# --- progress ------------------------------------------------------------------------------


def test_progress_is_kept_replaced_and_cleared(store: Store) -> None:
    progress = store.progress(KEY)
    assert progress.load() is None
    for content in (b"", b"first", os.urandom(5000)):
        progress.save(content)
        assert store.progress(KEY).load() == content
    progress.clear()
    progress.clear()
    assert progress.load() is None


@given(st.binary(max_size=40), st.data())
@settings(deadline=None)
def test_damaged_progress_starts_over_and_is_set_aside(content: bytes, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        progress = store.progress(KEY)
        progress.save(content)
        stored = bytearray(progress.path.read_bytes())
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        progress.path.write_bytes(bytes(stored))
        assert progress.load() is None
        assert not progress.path.exists()
        assert len(list((store.folder / "quarantine").glob("*/*.bin"))) == 1


def test_prune_removes_what_crashes_leave_and_nothing_else(store: Store) -> None:
    key = write(store)
    kept = files_of(store)
    folder = store.path_of(key).parent
    leftovers = [
        folder / f".{key}.json.123.abcd.tmp",
        folder / f"{key}.0123456789ab.parquet",
        folder / f"{'cd' * 32}.0123456789ab.parquet",
    ]
    for path in leftovers:
        path.write_bytes(b"x")
    store.progress(key).save(b"done")
    store.progress(KEY).save(b"going on")
    assert store.prune() == [store.progress(key).path]
    assert sorted(store.prune(older_than=-1)) == sorted(leftovers)
    assert files_of(store) == kept
    assert store.progress(KEY).load() == b"going on"


# --- several processes ---------------------------------------------------------------------


def threads_started(content: bytes) -> int:
    """By reading and writing a table."""
    before = len(os.listdir("/proc/self/task"))
    parquet_bytes(table_from_parquet(content))
    return len(os.listdir("/proc/self/task")) - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_reading_a_table_starts_no_thread() -> None:
    content = parquet_bytes(samples_to_table(make_samples("CBSE")))
    assert in_a_fresh_process(threads_started, content) == 0


def test_claim_excludes_and_releases(store: Store) -> None:
    with store.claim(KEY) as claim:
        assert claim.held
        with pytest.raises(StoreError, match=f"process {os.getpid()} on"):
            store.claim(KEY, wait=0.05)
    assert not claim.held
    assert list((store.folder / "claims").iterdir()) == []
    with store.claim(KEY):
        pass


def hold(folder: str, ready: Event) -> None:
    claim = Store(folder).claim(KEY)
    ready.set()
    time.sleep(60)
    claim.release()


def test_claim_expires_with_its_process(store: Store) -> None:
    ready = PROCESSES.Event()
    process = PROCESSES.Process(target=hold, args=(str(store.folder), ready))
    process.start()
    assert ready.wait(30)
    with pytest.raises(StoreError, match=f"process {process.pid} on"):
        store.claim(KEY)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with store.claim(KEY, wait=5):
        pass


def hold_with_a_fork(folder: str, forked: Connection) -> None:
    claim = Store(folder).claim(KEY)
    if child := os.fork():
        forked.send(child)
    time.sleep(60)
    claim.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_claim_expires_with_its_process_though_its_forks_live(store: Store) -> None:
    forked, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=hold_with_a_fork, args=(str(store.folder), sender))
    process.start()
    child = forked.recv()
    try:
        with pytest.raises(StoreError, match=f"process {process.pid} on"):
            store.claim(KEY)
        process.kill()
        with store.claim(KEY, wait=10):
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)
        process.join()


@pytest.mark.parametrize("refusal", [OSError(errno.ENOLCK, "No locks"), NotImplementedError()])
def test_claims_succeed_where_a_file_system_has_no_locks(
    store: Store, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    def acquire(*arguments: object, **options: object) -> None:
        raise refusal

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with store.claim(KEY) as claim:
        assert claim.held


def work(folder: str, log: str) -> None:
    """Does every job that nobody else does, and notes each one it did."""
    store = Store(folder)
    for number in range(12):
        samples = make_samples("BSC", forwards=number + 2)
        record = make_record(samples, model=f"m{number}")
        with store.claim(record.key, wait=30):
            if store.has(record.key):
                assert store.read(record.key).record == record
                continue
            with Path(log).open("a") as stream:
                stream.write(f"{record.key}\n")
            store.write(record, samples, adversarial=np.full((3, 1, 8, 8), float(number)))


def test_four_processes_on_one_folder_do_each_job_once(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = (str(store.folder), str(log))
    workers = [PROCESSES.Process(target=work, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0] * 4
    done = log.read_text().split()
    assert len(done) == len(set(done)) == 12
    scan = store.scan()
    assert len(scan.records) == 12
    assert scan.problems == ()
    assert len(files_of(store)) == 36


def overwrite(folder: str, seconds: float) -> None:
    store = Store(folder)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for letters in ("BBS", "BSS"):
            samples = make_samples(letters)
            store.write(make_record(samples), samples)
        store.prune(older_than=0)


def test_reading_while_writing_sees_one_or_the_other(store: Store) -> None:
    write(store, "BBS")
    key = store.keys()[0]
    process = PROCESSES.Process(target=overwrite, args=(str(store.folder), 0.5))
    process.start()
    seen = set()
    while process.is_alive():
        stored = store.read(key)
        letters = "".join(s.outcome.value[0] for s in stored.samples)
        assert stored.record.count(Outcome.SURVIVED) == letters.count("s")
        seen.add(letters)
    process.join()
    assert process.exitcode == 0
    assert seen == {"bbs", "bss"}


def write_on(folder: str, begun: Event) -> None:
    """Writes one record after the other, and never ends."""
    for number in itertools.count():
        samples = make_samples("BSC")
        record = make_record(samples, model=f"m{number}")
        Store(folder).write(record, samples, adversarial=np.zeros((3, 3, 32, 32)))
        begun.set()


def test_killed_writer_leaves_all_or_nothing(store: Store) -> None:
    rng = np.random.default_rng(0)
    for _ in range(4):
        begun = PROCESSES.Event()
        process = PROCESSES.Process(target=write_on, args=(str(store.folder), begun))
        process.start()
        assert begun.wait(30)
        time.sleep(float(rng.uniform(0.02, 0.15)))
        process.kill()
        process.join()
    scan = store.scan()
    assert scan.records
    assert scan.problems == ()
    store.prune(older_than=-1)
    assert len(files_of(store)) == 3 * len(scan.records)


@pytest.mark.parametrize("letters", ["BS", "SS", "CE"])
def test_a_record_is_shown_under_another_name(store: Store, letters: str) -> None:
    """Where nothing is broken, too: no attack is then named in its table."""
    stored = store.read(write(store, letters, attack="toy"))
    shown = stored.shown_as("another")
    assert shown.record.attack.name == "another"
    assert shown.arrow.schema == stored.arrow.schema
    broken = ["another" if outcome == "broken" else None for outcome in stored.table["outcome"]]
    assert [row.broken_by for row in shown.samples] == broken
