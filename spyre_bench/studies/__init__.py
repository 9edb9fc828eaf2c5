"""One calculation per notebook."""
