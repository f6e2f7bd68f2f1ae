"""The runtime: a program onto a device, requests into it, tokens, logits and times out of it."""
