"""Plans: when devices exchange what, and whose curvature they use."""
