"""The prediction held against reality: a server, its ranks, what others measured."""
