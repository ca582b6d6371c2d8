"""Plug-ins that measure one thing about a system and return it as an xarray dataset."""
