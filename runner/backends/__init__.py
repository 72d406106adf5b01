"""What executes step graphs: the protocol of engines, ONNX Runtime, TensorRT, and image coding."""
