"""The whole way from a trained network to its integer grid."""

from flaxcle.recipe.candidate import Recipe as Recipe
from flaxcle.recipe.pipeline import quantize_recipe as quantize_recipe
