"""Records and files of a results folder. No torch but for checkpoints."""
