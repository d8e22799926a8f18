"""The whole way from a trained network to its integer grid."""

from flaxcle.recipe.pipeline import quantize_recipe as quantize_recipe
from flaxcle.recipe.stages import Recipe as Recipe
