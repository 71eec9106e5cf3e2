"""The theme: one accent color, two grays, system fonts; nothing is fetched from another host."""

from pathlib import Path

from gradio.themes import Base
from gradio.themes.utils.colors import blue, slate
from gradio.themes.utils.sizes import radius_sm, spacing_sm, text_md

_PACKAGE = Path(__file__).resolve().parents[1]
# beside the package in the repository, inside it once it is installed
ASSETS = next(folder for folder in (_PACKAGE / "assets", _PACKAGE.parent / "assets") if folder.is_dir())
STYLE = ASSETS / "style.css"
VISITOR_SCRIPT = ASSETS / "visitor.js"  # of a public app

THEME = Base(
    primary_hue=blue,
    neutral_hue=slate,
    font=["ui-sans-serif", "system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
    radius_size=radius_sm,
    spacing_size=spacing_sm,
    text_size=text_md,
).set(
    button_primary_background_fill="#0072B2",
    button_primary_background_fill_hover="#005a8d",
    button_primary_background_fill_dark="#0072B2",
    button_primary_text_color="white",
)

# Switches the theme by a query parameter, so that charts are redrawn in its colors too.
TOGGLE_THEME = """() => {
  const url = new URL(window.location);
  url.searchParams.set('__theme', document.body.classList.contains('dark') ? 'light' : 'dark');
  window.location.href = url.href;
}"""
