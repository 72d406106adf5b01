"""Bundles as models of NVIDIA's Triton Inference Server, on its Python backend."""
