#!/usr/bin/env python3
"""Trains the small model that `topology.yaml` serves, on made-up payments, and writes `model.onnx` and `expected.jsonl`.

It is what most people start with: a scikit-learn pipeline, exported by skl2onnx with its default options. Nothing in the
export is done for Millstream's sake.

    pip install scikit-learn==1.9.1 skl2onnx==1.20.0 onnxruntime==1.31.1
    python train.py
"""

import json
import pathlib

import numpy as np
import onnxruntime
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = pathlib.Path(__file__).resolve().parent
FEATURES = ["amount", "balance", "age_days", "hour"]


def payments(rows):
    """Made-up payments; fraud is likelier for a large share of the balance, a young account, and at night."""
    rng = np.random.default_rng(7)
    amount = rng.lognormal(3.5, 1.2, rows)
    balance = rng.lognormal(6.5, 1.0, rows)
    age_days = rng.exponential(400, rows)
    hour = rng.integers(0, 24, rows)
    risk = 2.0 * amount / balance + 1.5 * (age_days < 30) + 1.0 * ((hour < 6) | (hour > 22)) - 3.5
    fraud = rng.random(rows) < 1 / (1 + np.exp(-risk))
    return np.column_stack([amount, balance, age_days, hour]).astype(np.float32), fraud.astype(np.int64)


def expected(model):
    """Score and label of every payment of `input.jsonl` that is whole, in its order."""
    session = onnxruntime.InferenceSession(model)
    for line in (HERE / "input.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            payment = json.loads(line)
            row = [float(payment[name]) for name in FEATURES if not isinstance(payment[name], str)]
        except (ValueError, KeyError, TypeError):
            continue
        if len(row) == len(FEATURES):
            label, probability = session.run(None, {"X": np.array([row], np.float32)})
            yield {"id": payment["id"], "score": float(probability[0][1]), "label": int(label[0])}


def main():
    x, y = payments(20_000)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    model = to_onnx(pipeline, x[:1], target_opset=15).SerializeToString()
    (HERE / "model.onnx").write_bytes(model)
    (HERE / "expected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in expected(model)), encoding="utf-8")


if __name__ == "__main__":
    main()
