"""What an engine would do with a workload, at exact event times."""
