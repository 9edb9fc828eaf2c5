"""Who runs next, pure, for two hosts: the simulator and vLLM's scheduler."""
