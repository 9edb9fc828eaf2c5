"""vLLM adapters, thin, with no ideas of their own. vLLM loads this in every process."""
