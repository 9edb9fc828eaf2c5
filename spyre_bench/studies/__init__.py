"""One calculation a notebook."""
