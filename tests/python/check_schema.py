"""Holds values against a JSON Schema: check_schema.py SCHEMA CASES.

CASES is a JSON list of {"name", "at", "value"}; `at` is the part of the schema to hold it against ("#" is the whole).
Prints a line `name: message` for every violation."""

import json
import sys

from jsonschema import Draft202012Validator

schema_path, cases_path = sys.argv[1:]
schema = json.load(open(schema_path))
Draft202012Validator.check_schema(schema)
for case in json.load(open(cases_path)):
    of = schema if case["at"] == "#" else {"$defs": schema["$defs"], "$ref": case["at"]}
    for error in Draft202012Validator(of).iter_errors(case["value"]):
        where = "/".join(str(step) for step in error.absolute_path)
        print(f"{case['name']}: {where}: {error.message}")
