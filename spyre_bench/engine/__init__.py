"""torch and FMS, never vLLM: a model that runs compiled buckets."""
