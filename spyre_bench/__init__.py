"""A workbench for serving language models from precompiled static shapes (IBM Spyre).

vLLM imports this package in every process, so nothing heavy is imported here.
"""

__version__ = "0.1.0"
