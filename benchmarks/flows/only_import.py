"""A program that only imports aflow."""

import aflow

assert aflow.__version__
