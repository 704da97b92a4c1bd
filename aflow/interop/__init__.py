"""Metaflow's own formats: what aflow has run in a form that Metaflow's client reads, and what
Metaflow has left in a form that aflow reads."""
