"""The ODE block: solvers, fields, Lipschitz bounds."""
