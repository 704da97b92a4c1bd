"""The command `aflow gc` on all runs of BlobsFlow."""

import sys

from aflow.cli.gc import gc

sys.exit(gc(["--flow", "BlobsFlow", "--older-than", "0s", "--grace", "0s"]))
