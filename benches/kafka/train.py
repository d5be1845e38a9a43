#!/usr/bin/env python3
"""Makes the models of the two workloads, `mlp.onnx` and `lgb.onnx`, beside this script or in a folder of your choice.

Both are in the repository, so that the benches need no Python packages; this is where they come from. The same seed gives
the same files. What the models predict has no meaning: W0's has random weights, and W1's learns a made-up label from
windows as the benches see them and from windows that are full, so that its trees ask about all of their inputs.

    $(deploy/python.sh benches/kafka/requirements.txt) benches/kafka/train.py [FOLDER]
"""

import json
import pathlib
import sys

import lightgbm
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "python"))
import recompute_workloads as workloads  # noqa: E402

SEED = 20260101
OPSET, IR_VERSION = 15, 8
# Cards, milliseconds from event to event, events before the first row to learn from, rows.
SAMPLES = [(1_000, 1, 300_000, 20_000), (100_000, 1, 300_000, 20_000), (20, 9_000, 10_000, 20_000)]
TREES, LEAVES = 100, 31
LAYERS = [32, 64, 32, 1]


def vectors():
    """Inputs of W1's model, a row an event."""
    rows = []
    for keys, step, before, count in SAMPLES:
        events = [workloads.event(number, keys, step) for number in range(before + count)]
        cards = workloads.Cards(events)
        rows += [cards.inputs(e) for e in events[before:]]
    return np.array(rows)


def labels(x, random):
    """A made-up label, rarer than not: large for the card, larger than usual, in a burst, with amounts all over."""
    count_1m, max_10m, spread_24h, amount, ratio = x[:, 0], x[:, 8], x[:, 19], x[:, 20], x[:, 21]
    logit = 1.5 * np.log(ratio) + 0.02 * np.minimum(count_1m, 60) + 0.4 * (amount >= max_10m) + 0.001 * spread_24h - 2.2
    return random.random(len(x)) < 1 / (1 + np.exp(-logit))


def trees(random):
    """LightGBM's classifier as ONNX, with its probabilities as the only output."""
    x = vectors()
    y = labels(x, random)
    settings = {
        "objective": "binary",
        "num_leaves": LEAVES,
        "seed": SEED,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,  # the same file on any machine
        "verbose": -1,
    }
    booster = lightgbm.train(settings, lightgbm.Dataset(x.astype(np.float32), y), TREES)
    model = convert_lightgbm(
        booster, "lgb", initial_types=[("x", FloatTensorType([None, x.shape[1]]))], target_opset=OPSET, zipmap=False
    )
    del model.graph.output[[output.name for output in model.graph.output].index("label")]
    # The converter lists them in the order of a set.
    model.opset_import.sort(key=lambda opset: opset.domain)
    used = sum(1 for gain in booster.feature_importance() if gain)
    return model, {"rows": len(y), "label": round(float(y.mean()), 3), "inputs_used": used}


def network(random):
    """A network with random weights, rectified between its layers, a probability at its end."""
    weights, nodes, last = [], [], "x"
    for i, (inputs, outputs) in enumerate(zip(LAYERS, LAYERS[1:])):
        weight = random.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)
        bias = random.standard_normal(outputs) / 10
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"weight{i}"))
        weights.append(numpy_helper.from_array(bias.astype(np.float32), f"bias{i}"))
        nodes.append(helper.make_node("Gemm", [last, f"weight{i}", f"bias{i}"], [f"sum{i}"]))
        at_end = i + 2 == len(LAYERS)
        last = "p" if at_end else f"layer{i}"
        nodes.append(helper.make_node("Sigmoid" if at_end else "Relu", [f"sum{i}"], [last]))
    tensor = lambda name, width: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])
    graph = helper.make_graph(nodes, "mlp", [tensor("x", LAYERS[0])], [tensor("p", LAYERS[-1])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    random = np.random.default_rng(SEED)
    mlp = network(random)
    lgb, report = trees(random)
    for name, model in [("mlp", mlp), ("lgb", lgb)]:
        onnx.checker.check_model(model)
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
