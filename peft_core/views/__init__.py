"""HTML, SVG and Vega-Lite of the page, rendered without Gradio."""
