"""Recipes: train and fine-tune models with pixel deconvolutions, each arm beside its control.

``pixelize finetune {segmentation,vae,gan,repair}`` and, in Python,
``pixelize.recipes.segmentation.run(Settings(...))``. They need ``pip install torch-pixelize[recipes]``.
"""
