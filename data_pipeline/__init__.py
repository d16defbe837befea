"""Text on disk -> records -> tokens -> rows. Knows neither trainer nor launch."""
