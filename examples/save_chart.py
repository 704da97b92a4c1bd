"""Read an artifact of a finished run and write it to a file: here the chart of model_selection.py.

python save_chart.py model_selection.png
"""

import sys
from pathlib import Path

from aflow import Flow
from aflow.errors import AflowError

try:
    run = Flow("ModelSelectionFlow").latest_successful_run
except AflowError as error:  # nothing has run here at all
    sys.exit(f"No chart of ModelSelectionFlow: {error}")
if run is None:
    sys.exit("ModelSelectionFlow has not succeeded here yet: python model_selection.py run")

target = Path(sys.argv[1] if len(sys.argv) > 1 else "model_selection.png")
target.write_bytes(run.data.chart)
print(f"{target}: the chart of {run.pathspec} ({len(run.data.chart)} bytes)")
