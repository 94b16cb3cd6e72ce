"""One cell evaluated: perturb, check, predict. Nothing is written here."""
