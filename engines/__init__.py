"""Builds engines for bundles, and verifies them."""
