"""Lower bounds on robustness, one prover per file."""
