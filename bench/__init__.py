"""Measurements. Not part of the product, and no timing in here is a test."""
