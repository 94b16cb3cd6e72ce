"""Does a model meet the requirements of the benchmark? Each failure says what to change."""
