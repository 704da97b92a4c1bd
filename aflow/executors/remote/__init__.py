"""Attempts on other machines than their coordinator's: on workers of a queue and in jobs."""
