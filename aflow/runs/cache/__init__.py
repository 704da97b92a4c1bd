"""Cache keys of tasks: reuse results, and explain why a result was not reused."""
