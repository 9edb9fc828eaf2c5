"""Of `make lab`: notebooks are saved without outputs, which would be changes of the checkout."""

from spyre_bench.runs.saved import without_outputs

# A text would do, says Jupyter's help; jupyter-server 2 fails on one.
get_config().ContentsManager.pre_save_hook = without_outputs  # type: ignore[name-defined]  # noqa: F821
