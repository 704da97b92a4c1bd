"""The command `aflow gc` on all runs of BlobsFlow."""

from aflow.cli.gc import gc

gc().main(["--flow", "BlobsFlow", "--older-than", "0s", "--grace", "0s"], standalone_mode=False)
