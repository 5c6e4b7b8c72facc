"""The report: one self-contained HTML page with charts as inline SVG and photos as small embedded JPEGs."""
