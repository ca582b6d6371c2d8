"""Figures turned into pages."""
