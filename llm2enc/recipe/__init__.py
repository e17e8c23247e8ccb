"""Recipes: one YAML file that says everything a run does, checked in full before torch is imported."""

from llm2enc.recipe.data import DataSpec, DocstringsData, FilesData, HubData
from llm2enc.recipe.evaluation import DocstringEval, EvalSpec
from llm2enc.recipe.head import HeadSpec, ProjectionSpec
from llm2enc.recipe.input import InputSpec, Part, Pooling, Role
from llm2enc.recipe.loading import load_recipe, recipe_names
from llm2enc.recipe.model import ModelSpec
from llm2enc.recipe.recipe import Recipe, Tracking
from llm2enc.recipe.replacing import sources_of
from llm2enc.recipe.stages import (
    ClmStage,
    ContrastiveStage,
    Ingredient,
    LoraSpec,
    MergeStage,
    MntpStage,
    SimcseStage,
    Stage,
)
from llm2enc.recipe.yaml_dialect import to_yaml

__all__ = [
    "ClmStage",
    "ContrastiveStage",
    "DataSpec",
    "DocstringEval",
    "DocstringsData",
    "EvalSpec",
    "FilesData",
    "HeadSpec",
    "HubData",
    "Ingredient",
    "InputSpec",
    "LoraSpec",
    "MergeStage",
    "MntpStage",
    "ModelSpec",
    "Part",
    "Pooling",
    "ProjectionSpec",
    "Recipe",
    "Role",
    "SimcseStage",
    "Stage",
    "Tracking",
    "load_recipe",
    "recipe_names",
    "sources_of",
    "to_yaml",
]
