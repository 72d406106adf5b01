"""Judging generated images: Fréchet distance, class accuracy, and their page."""
