"""How a model solves its ODEs, whatever library it calls: seen during a forward pass, and changed for one.

`recording` is what runs when a solver is called, `interception` is how the call gets there. One file per
library says which of its functions solve an ODE: `ode_block` for our own, `torchdiffeq_library`,
`torchdyn_library` and `torchode_library`. No library is imported that the model did not import itself.
"""
