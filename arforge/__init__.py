"""arforge: a deployment compiler for autoregressive image generators."""
