"""What the page may ask for, and how much of it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

BODY_BYTES, PROMPTS, CHARACTERS, NEW_TOKENS, FEATURES, WAITING = 2**18, 8, 20_000, 512, 64, 8

Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=CHARACTERS)]


class Query(BaseModel):
    """A concept: atlas features with their weights."""

    model_config = ConfigDict(extra="forbid")

    features: Annotated[list[tuple[int, Number]], Field(max_length=FEATURES)]


class Steering(Query):
    """A concept, a strength for each site, and what to continue."""

    strengths: Annotated[dict[str, Number], Field(max_length=256)]
    prompts: Annotated[list[Text], Field(max_length=PROMPTS)] = []
    tokens: Annotated[int, Field(ge=1, le=NEW_TOKENS)] = 40
    temperature: Annotated[Number, Field(ge=0, le=10)] = 0.5
    seed: Annotated[int, Field(ge=0, le=2**32 - 1 - PROMPTS)] = 0
    chat: bool = False


class Saving(Steering):
    """The same, as a file."""

    format: Literal["safetensors", "gguf"]
    additive: bool = False


class Place(Query):
    """A character of a text."""

    text: Text
    at: Annotated[int, Field(ge=0)]
