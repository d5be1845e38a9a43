#!/usr/bin/env python3
"""The two workloads of the benches, computed a second time, straight from their specification in docs/benchmarks.md.

It shares nothing with the engine or the bare loop: an event is computed in whole numbers from its number alone, a card's
windows are cut out of the list of all its events each time they are read, and the model is asked through ONNX Runtime for
Python with one thread.

    recompute_workloads.py events --keys 1000 --count 10000
        the events, a line of JSON each, as they stand in the topic
    recompute_workloads.py check w1 FILE --keys 1000 --count 1000000 --every 97
        holds a file of results (a line of JSON each) against what must be there: a result for each event whose number is
        divided by 97, and no other. Says how many agree; fails if any does not.

`--step` is the time between two events in milliseconds, 1 in the benches. Needs NumPy and ONNX Runtime.
"""

import argparse
import json
import math
import pathlib
import sys

import numpy as np

MODELS = pathlib.Path(__file__).resolve().parents[2] / "benches" / "kafka"
START_MILLIS = 1_767_225_600_000
CHANNELS = ["pos", "web", "atm", "app"]
TILE_MILLIS = [1_000, 10_000, 60_000, 1_440_000]
TILES = 60
RELATIVE = 1e-6
# Two steps of a 32-bit number near 1: in what order ONNX Runtime adds up the trees depends on its threads.
SCORE_ABSOLUTE = 2.5e-7
DIFFERENCES_SHOWN = 5


def mix(z):
    """The finalizer of splitmix64."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def event(number, keys, step=1):
    """An event; its amount in cents."""
    h = mix((42 + (number + 1) * 0x9E3779B97F4A7C15) % 2**64)
    h2 = mix(h)
    return {
        "id": number,
        "card": (h >> 20) % keys,
        "merchant": (h2 & 0xFFFF) % 1000,
        "cents": 100 + ((h2 >> 20) & 0xFFFF) * ((h2 >> 40) & 0xFFFF) // 8590,
        "channel": CHANNELS[(h2 >> 16) & 3],
        "ts": START_MILLIS + number * step + (h & 1),
    }


def line(e):
    """An event as it stands in the topic."""
    return (
        f'{{"id": {e["id"]}, "card": "k{e["card"]:06d}", "merchant": "m{e["merchant"]:04d}", '
        f'"amount": {e["cents"] // 100}.{e["cents"] % 100:02d}, "channel": "{e["channel"]}", "ts": {e["ts"]}}}'
    )


def w0_inputs(e):
    """The 32 inputs of W0's model."""
    v = [
        e["cents"] / 100 / 1000,
        e["ts"] % 86_400_000 / 86_400_000,
        e["id"] % 1000 / 1000,
        e["card"] % 1000 / 1000,
        e["merchant"] / 1000,
    ]
    return [v[j % 5] * ((7 * j + 3) % 11 - 5) / 5 for j in range(32)]


def w1_inputs(e, times, cents):
    """The 22 inputs of W1's model; `times` and `cents` are all events of the card so far, this one included."""
    inputs = []
    for tile in TILE_MILLIS:
        within = cents[times // tile > e["ts"] // tile - TILES]
        count, total, squares = len(within), int(within.sum()), int((within * within).sum())
        spread = math.sqrt(count * squares - total * total)
        inputs += [count, total / 100, total / count / 100, int(within.max()) / 100, spread / count / 100]
    amount = e["cents"] / 100
    return [*inputs, amount, amount / inputs[17]]


class Cards:
    """All events of each card, in their order."""

    def __init__(self, events):
        cards = np.array([e["card"] for e in events])
        self.order = np.argsort(cards, kind="stable")
        self.times = np.array([e["ts"] for e in events])[self.order]
        self.cents = np.array([e["cents"] for e in events])[self.order]
        self.begins = np.searchsorted(cards[self.order], np.arange(cards.max() + 2))
        self.places = np.empty(len(events), int)
        self.places[self.order] = np.arange(len(events))

    def inputs(self, e):
        """The inputs of W1's model as of an event."""
        until = slice(self.begins[e["card"]], self.places[e["id"]] + 1)
        return w1_inputs(e, self.times[until], self.cents[until])


def scores(model, output, inputs):
    """The last column of a model's output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return session.run([output], {"x": np.array(inputs, np.float32)})[0][:, -1].astype(float).tolist()


def results(workload, models, keys, count, every, step):
    """The result of each `every`-th event, by its number."""
    events = [event(number, keys, step) for number in range(count)]
    asked = events[::every]
    if workload == "w0":
        answers = scores(models / "mlp.onnx", "p", [w0_inputs(e) for e in asked])
        return {e["id"]: {"id": e["id"], "score": score} for e, score in zip(asked, answers)}
    cards = Cards(events)
    inputs = [cards.inputs(e) for e in asked]
    answers = scores(models / "lgb.onnx", "probabilities", inputs)
    return {
        e["id"]: {"id": e["id"], "card": f"k{e['card']:06d}", "score": score, "count_1h": x[10], "mean_24h": x[17]}
        for e, x, score in zip(asked, inputs, answers)
    }


def agrees(name, found, expected):
    """Whether a member of a result is what it must be."""
    if name == "score":
        return abs(found - expected) <= RELATIVE * abs(expected) + SCORE_ABSOLUTE
    if name == "mean_24h":
        return abs(found - expected) <= RELATIVE * abs(expected)
    return found == expected


def differences(lines, expected):
    """What is wrong with a file of results, a text each."""
    missing = dict(expected)
    for text in lines:
        found = json.loads(text)
        wanted = missing.pop(found["id"], None)
        if wanted is None:
            yield f"{found}: {'a second time' if found['id'] in expected else 'not asked for'}"
        elif found.keys() != wanted.keys() or not all(agrees(name, found[name], wanted[name]) for name in wanted):
            yield f"{found} must be {wanted}"
    for wanted in missing.values():
        yield f"{wanted} is missing"


def check(options):
    expected = results(options.workload, options.models, options.keys, options.count, options.every, options.step)
    with options.file.open(encoding="utf-8") as lines:
        wrong = list(differences(lines, expected))
    if wrong:
        print("\n".join(wrong[:DIFFERENCES_SHOWN]))
        sys.exit(f"{options.file}: {len(wrong)} differences in {len(expected)} results of {options.workload}")
    print(f"{len(expected)} of {len(expected)} results of {options.workload} agree")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    printing = commands.add_parser("events", help="print the events")
    checking = commands.add_parser("check", help="hold results against what they must be")
    checking.add_argument("workload", choices=["w0", "w1"])
    checking.add_argument("file", type=pathlib.Path, help="the results, a line of JSON each")
    checking.add_argument("--every", type=int, default=1, help="there are results of every so many-th event")
    checking.add_argument("--models", type=pathlib.Path, default=MODELS, help="the folder of mlp.onnx and lgb.onnx")
    for command in (printing, checking):
        command.add_argument("--keys", type=int, required=True, help="number of cards")
        command.add_argument("--count", type=int, required=True, help="number of events")
        command.add_argument("--step", type=int, default=1, help="milliseconds from event to event")
    options = parser.parse_args()
    if options.command == "check":
        check(options)
    else:
        sys.stdout.writelines(line(event(i, options.keys, options.step)) + "\n" for i in range(options.count))


if __name__ == "__main__":
    main()
