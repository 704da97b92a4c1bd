"""Decorators of whole flows: one small file each, checked when they are made."""
