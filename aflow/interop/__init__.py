"""Beside Metaflow: what aflow has run in a form that Metaflow's client reads, what Metaflow has
left in a form that aflow reads, and records of runs where the metadata service is Metaflow's."""
