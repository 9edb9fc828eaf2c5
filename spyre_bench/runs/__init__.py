"""A notebook executed, and what it leaves behind."""
