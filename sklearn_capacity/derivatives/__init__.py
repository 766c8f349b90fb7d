"""All derivatives of a network; every name states with respect to what.

Input side: `input_jacobian` (rows of dlogits/dx by autograd), `input_sweeps` (the same through a graph, without
autograd), `tape` (the network linearised at a batch), `sweep_rules` (the transposed and the tangent operators that the
sweeps apply), `pooling_tiles`.
Parameter side: `parameter_groups` (the tensors in theta), `parameter_vector` (theta as tensors that can be replaced),
`parameter_uses` (matrices and scales), `parameter_jacobian`, `parameter_tangent`, `parameter_linearization`,
`sample_gradients`, `output_fisher` (the loss's Fisher matrix at the logits), `fisher_matrix`, `loss_hessian`.
Shared: `double_backward` (J v by two reverse passes), `perturbation` (weights that move), `modes`, `freed_memory`.
Read `input_jacobian`, then `input_sweeps`; and `parameter_groups`, then `parameter_jacobian`.

Data flow: NetworkGraph, X -> Linearization -> sample gradients -> FisherMatrix -> measures.
"""
