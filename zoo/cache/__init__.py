"""The KV cache and recurrent states of generation: pools of slots, pages, rows, and reuse of prefixes and sources."""
