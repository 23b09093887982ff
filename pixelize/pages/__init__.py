"""Pages and figures for people: needs matplotlib, jinja2 and pillow."""
