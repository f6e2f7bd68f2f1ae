"""Pictures of results: text for a terminal, SVG for a page."""
