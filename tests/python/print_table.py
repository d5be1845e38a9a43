"""Prints columns of a table of the offline store, a row a line, as a JSON list.

    python print_table.py TABLE COLUMN...
"""

import json
import os
import sys

from deltalake import DeltaTable

table = DeltaTable(sys.argv[1]).to_pyarrow_table()
for row in zip(*(table.column(name).to_pylist() for name in sys.argv[2:])):
    print(json.dumps(row))
sys.stdout.flush()
# Threads of its libraries now and then abort an interpreter that ends in the usual way.
os._exit(0)
