"""What a model runs under: counted queries, device, memory, time limits, progress."""
