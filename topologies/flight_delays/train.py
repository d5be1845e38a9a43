#!/usr/bin/env python3
"""Trains the flight-delay model on the rows of the offline store and writes `model.onnx` beside this script.

What the engine wrote while it ran is what the model learns from: the feature vectors as they were served, joined to the
labels that came hours later. Flights of January to August train it; those of September to December only judge it.

    train.py                                    from the tables the topology writes (offline/predictions, offline/arrivals)
    train.py --predictions DIR --arrivals DIR   from tables elsewhere
    train.py --vectors FILE.npz                 from tests/python/recompute_flights.py, before there is a table

The first run makes a virtual environment in ${XDG_CACHE_HOME:-~/.cache}/millstream/train and installs LightGBM and the
ONNX converter there (about 400 MB).
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).resolve().parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "millstream"
PACKAGES = ["numpy==2.4.6", "lightgbm==4.7.0", "scikit-learn==1.9.1", "onnx==1.23.2", "onnxmltools==1.16.0"]
PACKAGES += ["onnxruntime==1.31.1", "deltalake==1.6.6", "pyarrow==26.0.1"]

FEATURES = [
    "origin.delay_mean_1h",
    "origin.delay_mean_24h",
    "origin.late_mean_1h",
    "origin.late_mean_3h",
    "carrier.delay_mean_24h",
    "carrier.late_mean_3h",
    "carrier_origin.delay_mean_3h",
    "tail.delay_last_24h",
    "tail.time_since_last_24h",
    "destination.delay_mean_6h",
    "destination.delay_mean_24h",
    "route.delay_mean_7d",
    "backlog",
    "origin_cancelled.count_24h",
    "origin_weather.precipitation",
    "origin_weather.visibility",
    "origin_weather.dew_point",
    "hour",
    "distance",
]
LATE_MINUTES = 15
TEST_FROM = "2013-09"  # flight ids start with the day


def with_packages():
    """Runs this script again in an environment that has the packages, unless this one does."""
    try:
        import deltalake, lightgbm, onnxmltools, onnxruntime, sklearn  # noqa: F401
    except ImportError:
        python = CACHE / "train" / "bin" / "python"
        if pathlib.Path(sys.executable) == python:
            raise
        if not python.exists():
            venv.create(CACHE / "train", with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
        subprocess.run(install, check=True, stdout=sys.stderr)
        os.execv(python, [str(python), *sys.argv])


def from_tables(predictions, arrivals):
    """(flight_id, vectors, arrival delay by flight_id) from the offline store."""
    import numpy as np
    from deltalake import DeltaTable

    rows = DeltaTable(str(predictions)).to_pyarrow_table(columns=["flight_id", *FEATURES])
    matrix = [rows[name].cast("float64").to_numpy(zero_copy_only=False) for name in FEATURES]
    labels = DeltaTable(str(arrivals)).to_pyarrow_table(columns=["flight_id", "delay_minutes"]).to_pydict()
    return rows["flight_id"].to_pylist(), np.column_stack(matrix), dict(zip(labels["flight_id"], labels["delay_minutes"]))


def from_vectors(file):
    """The same from the recomputation and the event files it was made from."""
    import numpy as np

    saved = np.load(file)
    assert list(saved["names"]) == FEATURES, "the recomputation has other features"
    with (CACHE / "flights" / "arrivals.jsonl").open(encoding="utf-8") as lines:
        labels = {row["flight_id"]: row["delay_minutes"] for row in map(json.loads, lines)}
    return saved["flight_id"].tolist(), saved["vectors"], labels


def split(ids, vectors, labels):
    """Labelled rows in the order of their flights, as (training, test) pairs of vectors and labels. A flight without an
    arrival, cancelled or diverted, has no label."""
    import numpy as np

    rows = sorted((flight, row) for row, flight in enumerate(ids) if flight in labels)
    # The engine gives the model 32-bit floats, so it learns from them.
    x = vectors[[row for _, row in rows]].astype(np.float32)
    y = np.array([labels[flight] > LATE_MINUTES for flight, _ in rows])
    test = np.array([flight >= TEST_FROM for flight, _ in rows])
    return (x[~test], y[~test]), (x[test], y[test])


def train(x, y):
    import lightgbm

    settings = {
        "objective": "binary",
        "num_leaves": 15,
        "learning_rate": 0.1,
        "min_data_in_leaf": 100,
        "seed": 2013,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,  # the same file on any machine
        "verbose": -1,
    }
    return lightgbm.train(settings, lightgbm.Dataset(x, y, feature_name=[name.replace(".", "_") for name in FEATURES]), 100)


def export(booster):
    """The model as ONNX: one input [n, 19] and one output, the probabilities [n, 2] of on time and late."""
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    inputs = [("features", FloatTensorType([None, len(FEATURES)]))]
    model = convert_lightgbm(booster, "flight_delays", initial_types=inputs, target_opset=15, zipmap=False)
    # The label would be a threshold at 0.5, which nobody asked for.
    del model.graph.output[[output.name for output in model.graph.output].index("label")]
    model.metadata_props.add(key="features", value=json.dumps(FEATURES))
    return model.SerializeToString()


def probabilities(model, x):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options)
    return session.run(["probabilities"], {"features": x})[0][:, 1]


def main():
    with_packages()
    import numpy as np
    from sklearn.metrics import log_loss, roc_auc_score

    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--predictions", type=pathlib.Path, default=HERE / "offline" / "predictions")
    options.add_argument("--arrivals", type=pathlib.Path, default=HERE / "offline" / "arrivals")
    options.add_argument("--vectors", type=pathlib.Path, help="from recompute_flights.py")
    options.add_argument("--out", type=pathlib.Path, default=HERE / "model.onnx")
    options = options.parse_args()
    rows = from_vectors(options.vectors) if options.vectors else from_tables(options.predictions, options.arrivals)
    (x, y), (test_x, test_y) = split(*rows)
    booster = train(x, y)
    model = export(booster)
    scores = probabilities(model, test_x)
    report = {
        "rows": {"train": len(y), "test": len(test_y)},
        "late": {"train": round(float(y.mean()), 4), "test": round(float(test_y.mean()), 4)},
        "auc": {"train": roc_auc_score(y, probabilities(model, x)), "test": roc_auc_score(test_y, scores)},
        "log_loss": {"test": log_loss(test_y, scores)},
        # A 32-bit threshold sends a row that sits on a split the other way: few rows, small steps.
        "onnx_differs": {"largest": float(np.abs(scores - booster.predict(test_x)).max())},
    }
    options.out.write_bytes(model)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
