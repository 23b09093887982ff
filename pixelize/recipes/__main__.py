"""``accelerate launch -m pixelize.recipes RECIPE``: ``pixelize finetune RECIPE`` in several processes."""

from __future__ import annotations

from pixelize.recipes.command import app

app()
