#!/usr/bin/env python3
"""How good the predictions of the flight-delay topology are, on flights that its model was not trained on.

    judge_flights.py EVENTS TABLE

EVENTS is the folder of the event files that `prepare.py` wrote, TABLE the folder of the Delta table of predictions. Prints
the area under the ROC curve over the flights of September to December whose arrival is known; late is more than 15 minutes.
"""

import json
import pathlib
import sys

import numpy as np
from deltalake import DeltaTable

SINCE = np.datetime64("2013-09-01", "ms")  # the decision, UTC


def auc(scores, positive):
    """The probability that a positive scores above a negative; a tie counts half."""
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    ranks = (last - (size - 1) / 2)[group]  # of equals, the mean of their ranks
    n = positive.sum()
    return (ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n))


def main(events, table):
    with (pathlib.Path(events) / "arrivals.jsonl").open(encoding="utf-8") as lines:
        arrivals = [json.loads(line) for line in lines]
    late = {arrival["flight_id"]: arrival["delay_minutes"] > 15 for arrival in arrivals}
    columns = DeltaTable(table).to_pyarrow_table(columns=["flight_id", "event_time", "score"])
    known = np.array([flight in late for flight in columns["flight_id"].to_pylist()])
    recent = columns["event_time"].cast("int64").to_numpy() >= SINCE.astype("int64") * 1_000  # microseconds
    chosen = known & recent
    flights = columns["flight_id"].to_numpy()[chosen]
    print(auc(columns["score"].to_numpy()[chosen], np.array([late[flight] for flight in flights])))


if __name__ == "__main__":
    main(*sys.argv[1:])
