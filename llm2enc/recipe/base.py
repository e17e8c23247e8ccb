"""What every part of a recipe is: strict, frozen, and free of secrets."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llm2enc.storage import secrets_in

PositiveInt = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        """A recipe is written into runs, exports, model cards and trackers: what is not in it cannot get there."""
        for name, value in self:
            texts = [value] if isinstance(value, str) else value if isinstance(value, tuple) else ()
            texts = [*value.keys(), *value.values()] if isinstance(value, dict) else texts
            kinds = [kind for text in texts if isinstance(text, str) for kind in secrets_in(text)]
            if kinds:
                raise ValueError(
                    f"`{name}` holds what looks like {kinds[0]}; a recipe is copied into everything that is made with it, "
                    "so leave secrets to the environment (HF_TOKEN, WANDB_API_KEY, .netrc)"
                )
        return self
