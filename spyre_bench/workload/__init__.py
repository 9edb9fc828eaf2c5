"""Which requests come when: arrivals, lengths, max_tokens."""
