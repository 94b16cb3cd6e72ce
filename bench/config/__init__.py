"""From a preset and arguments to a plan and its cells."""
