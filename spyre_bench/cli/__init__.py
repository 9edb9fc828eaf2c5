"""The `spyre-bench` command."""
