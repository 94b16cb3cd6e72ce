"""The harness: plan, train, evaluate, time, store, summarise, report."""
