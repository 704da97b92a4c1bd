"""Python, and the door of aflow."""

import aflow

assert aflow.__version__
