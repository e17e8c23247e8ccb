"""Recipes: one YAML file that says everything a run does, checked in full before torch is imported."""

from llm2enc.recipe.data import DataSpec, DocstringsData, FilesData, HubData
from llm2enc.recipe.evaluation import DocstringEval, EvalSpec
from llm2enc.recipe.head import HeadSpec, ProjectionSpec
from llm2enc.recipe.input import ExampleSpec, InputSpec, Part, Pooling, Role
from llm2enc.recipe.loading import load_recipe, recipe_names
from llm2enc.recipe.loss import LearnedTemperature, LossSpec, MaskSpec, MatryoshkaSpec, SimcseLossSpec
from llm2enc.recipe.model import ModelSpec
from llm2enc.recipe.pair_scores import PairScores, PairScoresLossSpec
from llm2enc.recipe.recipe import Recipe, Tracking
from llm2enc.recipe.replacing import sources_of
from llm2enc.recipe.stages import (
    ClmStage,
    ContrastiveStage,
    LoraSpec,
    MntpStage,
    PairScoresStage,
    SimcseStage,
    Stage,
)
from llm2enc.recipe.teacher import EmbeddingMatchSpec, SoftLabelsSpec, SpreadOutSpec, TeacherSpec
from llm2enc.recipe.yaml_dialect import to_yaml

__all__ = [
    "ClmStage",
    "ContrastiveStage",
    "DataSpec",
    "DocstringEval",
    "DocstringsData",
    "EmbeddingMatchSpec",
    "EvalSpec",
    "ExampleSpec",
    "FilesData",
    "HeadSpec",
    "HubData",
    "InputSpec",
    "LearnedTemperature",
    "LoraSpec",
    "LossSpec",
    "MaskSpec",
    "MatryoshkaSpec",
    "MntpStage",
    "ModelSpec",
    "PairScores",
    "PairScoresLossSpec",
    "PairScoresStage",
    "Part",
    "Pooling",
    "ProjectionSpec",
    "Recipe",
    "Role",
    "SimcseLossSpec",
    "SimcseStage",
    "SoftLabelsSpec",
    "SpreadOutSpec",
    "Stage",
    "TeacherSpec",
    "Tracking",
    "load_recipe",
    "recipe_names",
    "sources_of",
    "to_yaml",
]
