"""From checkpoints to bundles: models, tracing, weights. Needs torch and onnx."""
