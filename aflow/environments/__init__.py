"""The packages that steps name (`@pypi`, `@conda`): solved, locked, and built into environments."""
