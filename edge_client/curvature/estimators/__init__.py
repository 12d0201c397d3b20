"""Curvature estimators, one per file, behind one interface."""
