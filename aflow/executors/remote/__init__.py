"""Attempts far from their coordinator: on workers of a queue, in jobs of AWS Batch."""
