"""Text encoders that turn prompts into features, and the tokenizers that they come with."""
