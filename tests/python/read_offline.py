"""Reads a table of the offline store as its users do, with DuckDB and with deltalake, and checks what they find.

    python read_offline.py TABLE ROWS

TABLE is the table's folder, ROWS the number of rows it must have. Prints one line and exits 0 when all is well.
"""

import sys

import duckdb
import duckdb_ext
from deltalake import DeltaTable


def main(folder: str, rows: int) -> None:
    table = DeltaTable(folder)
    arrow = table.to_pyarrow_table()
    assert arrow.num_rows == rows, f"deltalake reads {arrow.num_rows} rows, not {rows}"

    duckdb_ext.init(duckdb)
    duckdb.load_extension("delta")
    duckdb.sql("set TimeZone = 'UTC'")
    duck = duckdb.sql(f"select * from delta_scan('{folder}')")
    assert sorted(duck.columns) == sorted(arrow.column_names), f"{duck.columns} is not {arrow.column_names}"
    count, low, high = duckdb.sql("select count(*), min(event_time), max(event_time) from duck").fetchone()
    assert count == rows, f"DuckDB reads {count} rows, not {rows}"

    # Both see the same values: row by row, by origin.
    origin = [(column, "ascending") for column in ("topic", "partition", "offset")]
    one = arrow.sort_by(origin)
    other = duckdb.sql("select * from duck order by topic, partition, \"offset\"").to_arrow_table().select(arrow.column_names)
    for name in arrow.column_names:
        same = one[name].to_pylist() == other[name].to_pylist()
        assert same, f"column {name} differs: {one[name][:3]} and {other[name][:3]}"

    # The partition is the date of the event time, in UTC.
    wrong = duckdb.sql("select count(*) from duck where date <> (event_time at time zone 'UTC')::date").fetchone()[0]
    assert wrong == 0, f"{wrong} rows are in the partition of another date"

    check_batches(table, one)
    print(f"{rows} rows, {low} to {high}, {len(table.history())} versions, {len(table.file_uris())} files")


def check_batches(table: DeltaTable, rows) -> None:
    """Each row is in exactly one batch: the commit whose offsets hold it."""
    batches = [commit for commit in table.history() if "batch_id" in commit]
    ids = [commit["batch_id"] for commit in batches]
    assert len(set(ids)) == len(ids) > 0, f"batch ids repeat: {ids}"
    assert sum(commit["millstream"]["rows"] for commit in batches) == rows.num_rows
    for topic, partition, offset in zip(*(rows[c].to_pylist() for c in ("topic", "partition", "offset"))):
        holding = [
            commit["batch_id"]
            for commit in batches
            for first, last in [commit["millstream"]["offsets"].get(topic, {}).get(str(partition), (1, 0))]
            if first <= offset <= last
        ]
        assert len(holding) == 1, f"{topic}/{partition}/{offset} is in {holding}"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
