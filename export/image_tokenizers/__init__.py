"""The image tokenizers that arforge exports, one module a kind."""
