"""The look: one accent, two greys, system type; nothing is fetched from another host."""

from pathlib import Path

import gradio as gr

ASSETS = Path(__file__).resolve().parents[2] / "assets"
STYLE = ASSETS / "style.css"
VISITOR_SCRIPT = ASSETS / "visitor.js"  # of a public app

THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.blue,
    neutral_hue=gr.themes.colors.slate,
    font=["ui-sans-serif", "system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
    radius_size=gr.themes.sizes.radius_sm,
    spacing_size=gr.themes.sizes.spacing_sm,
    text_size=gr.themes.sizes.text_md,
).set(
    button_primary_background_fill="#0072B2",
    button_primary_background_fill_hover="#005a8d",
    button_primary_background_fill_dark="#0072B2",
    button_primary_text_color="white",
)

# The other theme by the address, so that charts are drawn in its colours too.
TOGGLE_THEME = """() => {
  const url = new URL(window.location);
  url.searchParams.set('__theme', document.body.classList.contains('dark') ? 'light' : 'dark');
  window.location.href = url.href;
}"""
