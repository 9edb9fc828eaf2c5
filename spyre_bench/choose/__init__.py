"""Which buckets to compile, with a certificate."""
