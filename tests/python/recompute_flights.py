#!/usr/bin/env python3
"""The 19 features of the flight-delay topology, computed a second time, straight from their definitions.

It shares nothing with the engine: it reads the event files that `prepare.py` wrote, whole, and answers for each scheduled
flight what was known at its decision time t. A window of length w is (t - w, t]: an event at t counts, one at t - w does
not. Whatever happened later does not count, in whatever order the files stand.

    recompute_flights.py [--data DIR] --out FILE.npz          the vectors
    recompute_flights.py [--data DIR] --compare TABLE         against what the engine wrote, every row, to 1e-9

TABLE is a Delta table's folder (needs the package `deltalake`) or a file of JSON lines, with the columns `flight_id` and
the 19 features. Needs NumPy.
"""

import argparse
import json
import os
import pathlib
import sys

import numpy as np

HOUR = 3600
TOLERANCE = 1e-9


def read(data, stream):
    """A stream's columns: `at` as seconds since 1970, the others as lists."""
    with (data / f"{stream}.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["at"] = np.array([at.rstrip("Z") for at in columns["at"]], dtype="datetime64[s]").astype("int64")
    return columns


class Events:
    """Events by key, each key's in the order of time, for reads of windows."""

    SPAN = 1 << 34  # more seconds than any window or time here, so that the keys do not touch

    def __init__(self, stream, key, values=None):
        keys = list(zip(*(stream[column] for column in key)))
        self.numbers = {}
        groups = np.array([self.numbers.setdefault(k, len(self.numbers)) for k in keys])
        # Rows without a value do not count where there are values.
        values = None if values is None else np.asarray(values, dtype=float)
        kept = np.ones(len(keys), bool) if values is None else ~np.isnan(values)
        groups, times = groups[kept], stream["at"][kept]
        order = np.lexsort((times, groups))  # stable: of events at one instant the one that stands later is the last
        self.times = times[order]
        self.places = groups[order] * self.SPAN + self.times
        if values is not None:
            self.values = values[kept][order]
            # Delays are whole minutes, so these sums, and their differences, are exact.
            self.sums = np.concatenate([[0.0], np.cumsum(self.values)])

    def window(self, keys, times, seconds, closed=False):
        """First and last-but-one index of each reader's events in (t - w, t], or [t - w, t] when closed."""
        groups = np.array([self.numbers.get(key, -1) for key in keys])
        start = np.searchsorted(self.places, groups * self.SPAN + times - seconds, "left" if closed else "right")
        end = np.searchsorted(self.places, groups * self.SPAN + times, "right")
        known = groups >= 0
        return np.where(known, start, 0), np.where(known, end, 0)

    def count(self, keys, times, seconds):
        start, end = self.window(keys, times, seconds)
        return (end - start).astype(float)

    def mean(self, keys, times, seconds):
        start, end = self.window(keys, times, seconds)
        return np.divide(self.sums[end] - self.sums[start], end - start, out=np.full(len(times), np.nan), where=end > start)

    def last(self, keys, times, seconds, closed=False):
        start, end = self.window(keys, times, seconds, closed)
        return np.where(end > start, self.values[np.maximum(end, 1) - 1], np.nan)

    def since_last(self, keys, times, seconds):
        start, end = self.window(keys, times, seconds)
        return np.where(end > start, times - self.times[np.maximum(end, 1) - 1], np.nan)


def vectors(data):
    """(flight_id, names, matrix): a row for each scheduled flight in the order of `schedule.jsonl`; missing is NaN."""
    flights = read(data, "schedule")
    t = flights["at"]
    features = {}

    def at(*columns):
        return list(zip(*(flights[column] for column in columns)))

    departures = read(data, "departures")
    delay = np.array(departures["delay_minutes"])
    late = (delay > 15).astype(float)
    origin, carrier, both = at("origin"), at("carrier"), at("carrier", "origin")
    by_origin, late_by_origin = Events(departures, ["origin"], delay), Events(departures, ["origin"], late)
    features["origin.delay_mean_1h"] = by_origin.mean(origin, t, HOUR)
    features["origin.delay_mean_24h"] = by_origin.mean(origin, t, 24 * HOUR)
    features["origin.late_mean_1h"] = late_by_origin.mean(origin, t, HOUR)
    features["origin.late_mean_3h"] = late_by_origin.mean(origin, t, 3 * HOUR)
    features["carrier.delay_mean_24h"] = Events(departures, ["carrier"], delay).mean(carrier, t, 24 * HOUR)
    features["carrier.late_mean_3h"] = Events(departures, ["carrier"], late).mean(carrier, t, 3 * HOUR)
    features["carrier_origin.delay_mean_3h"] = Events(departures, ["carrier", "origin"], delay).mean(both, t, 3 * HOUR)
    tail, by_tail = at("tail"), Events(departures, ["tail"], delay)
    features["tail.delay_last_24h"] = by_tail.last(tail, t, 24 * HOUR)
    features["tail.time_since_last_24h"] = by_tail.since_last(tail, t, 24 * HOUR)

    arrivals = read(data, "arrivals")
    delay = np.array(arrivals["delay_minutes"])
    by_destination = Events(arrivals, ["dest"], delay)
    features["destination.delay_mean_6h"] = by_destination.mean(at("dest"), t, 6 * HOUR)
    features["destination.delay_mean_24h"] = by_destination.mean(at("dest"), t, 24 * HOUR)
    route = Events(arrivals, ["origin", "dest"], delay)
    features["route.delay_mean_7d"] = route.mean(at("origin", "dest"), t, 7 * 24 * HOUR)

    # Scheduled to leave in the last two hours, which their decisions an hour before the departure tell, but not departed.
    decisions = Events(flights, ["origin"])
    due = decisions.count(origin, t, 3 * HOUR) - decisions.count(origin, t, HOUR)
    features["backlog"] = due - by_origin.count(origin, t, 2 * HOUR)
    features["origin_cancelled.count_24h"] = Events(read(data, "cancellations"), ["origin"]).count(origin, t, 24 * HOUR)

    weather = read(data, "weather")
    for name, column in (("precipitation", "precip"), ("visibility", "visib"), ("dew_point", "dewp")):
        values = [np.nan if value is None else value for value in weather[column]]
        features[f"origin_weather.{name}"] = Events(weather, ["origin"], values).last(origin, t, 3 * HOUR, closed=True)

    features["hour"] = np.array(flights["hour"], dtype=float)
    features["distance"] = np.array(flights["distance"], dtype=float)
    assert len(features) == 19
    return flights["flight_id"], list(features), np.column_stack(list(features.values()))


def table(path, names):
    """What the engine wrote: (flight_id, matrix)."""
    if path.is_dir():
        from deltalake import DeltaTable

        columns = DeltaTable(str(path)).to_pyarrow_table(columns=["flight_id", *names])
        matrix = [columns[name].cast("float64").to_numpy(zero_copy_only=False) for name in names]
        return columns["flight_id"].to_pylist(), np.column_stack(matrix)
    ids, rows = [], []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            ids.append(row["flight_id"])
            rows.append([np.nan if row[name] is None else row[name] for name in names])
    return ids, np.array(rows, dtype=float)


def compare(expected_ids, names, expected, ids, found):
    """Prints what differs; true when every row is there once and agrees."""
    if len(set(ids)) != len(ids) or set(ids) != set(expected_ids):
        missing, extra = set(expected_ids) - set(ids), set(ids) - set(expected_ids)
        print(f"{len(ids)} rows, {len(set(ids))} flights; {len(missing)} missing, {len(extra)} unknown")
        return False
    place = {flight: row for row, flight in enumerate(ids)}
    found = found[[place[flight] for flight in expected_ids]]
    scale = np.maximum(1.0, np.abs(expected))
    with np.errstate(invalid="ignore"):
        agrees = (np.isnan(expected) & np.isnan(found)) | (np.abs(expected - found) <= TOLERANCE * scale)
    for column, name in enumerate(names):
        wrong = np.flatnonzero(~agrees[:, column])
        if len(wrong):
            row = wrong[0]
            pair = f"{found[row, column]!r}, expected {expected[row, column]!r}"
            print(f"{name}: {len(wrong)} rows differ; the first is {expected_ids[row]}: {pair}")
    print(f"{int(agrees.all(axis=1).sum())} of {len(expected_ids)} rows agree in all {len(names)} features")
    return bool(agrees.all())


def main():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--data", type=pathlib.Path, default=cache / "millstream" / "flights", help="folder of the event files")
    options.add_argument("--out", type=pathlib.Path, help="write the vectors here, as .npz")
    options.add_argument("--compare", type=pathlib.Path, help="the engine's table")
    options = options.parse_args()
    ids, names, matrix = vectors(options.data)
    if options.out:
        np.savez_compressed(options.out, flight_id=np.array(ids), names=np.array(names), vectors=matrix)
    if options.compare and not compare(ids, names, matrix, *table(options.compare, names)):
        sys.exit(1)


if __name__ == "__main__":
    main()
