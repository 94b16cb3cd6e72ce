"""What all attacks share: norms, losses, seeds, the queried model, memory, costs."""
