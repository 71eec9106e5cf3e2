"""What the page shows as HTML, SVG and Vega-Lite; text in, text out, no page needed."""
