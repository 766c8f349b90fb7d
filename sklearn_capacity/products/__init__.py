"""Products of a function and its parameters with Jacobians, Fisher matrices and Hessians."""
