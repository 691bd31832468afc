"""The bodies of OpenAI's API that we read, and their bounds.

Three kinds of fields: those that are declared are honoured; those in `REFUSED` would change the answer and are refused by name
unless they have the value that changes nothing; any other is ignored, and named in the reply's `x-agartha-ignored` header.
Fields of our own: top_k, min_p, repetition_penalty, min_tokens, stop_token_ids, ignore_eos, guided_regex, guided_grammar,
guided_choice, guided_json, thinking_budget, chat_template_kwargs, return_token_ids, include_prompt.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Unit = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Text = Annotated[str, Field(max_length=2**23)]
Stop = Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=16)]


class Body(BaseModel):
    """Strict about what it knows, open to what it does not."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=(), frozen=True)
    REFUSED: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {}
    """Field -> (values that change nothing, why others are refused)."""


class StreamOptions(Body):
    include_usage: bool | None = None


class Sampled(Body):
    """What every endpoint that generates has."""

    model: Annotated[str, Field(max_length=1000)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Unit | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Unit | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=4096)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    guided_regex: Annotated[str, Field(max_length=2**16)] | None = None
    guided_grammar: Annotated[str, Field(max_length=2**18)] | None = None
    guided_choice: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1024)] | None = (
        None
    )
    guided_json: dict[str, Any] | bool | None = None
    return_token_ids: bool | None = None
    include_prompt: bool | None = None


class Part(Body):
    """A part of a message's content. Only text can be read."""

    type: Annotated[str, Field(max_length=100)]
    text: Text | None = None
    refusal: Text | None = None


class FunctionCall(Body):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: Text = "{}"


class ToolCall(Body):
    id: Annotated[str, Field(max_length=256)] | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[Part], Field(max_length=4096)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    """The same by another name; both are read, both are given."""
    tool_calls: Annotated[list[ToolCall], Field(max_length=1024)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    REFUSED = {
        "audio": ((None,), "the model reads text only."),
        "function_call": ((None,), "use tool_calls."),
    }  # fmt: skip


class Function(Body):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class FunctionName(Body):
    name: Annotated[str, Field(max_length=256)]


class NamedTool(Body):
    type: Literal["function"]
    function: FunctionName


class JsonSchema(Body):
    name: Annotated[str, Field(max_length=256)] = "schema"
    description: Text | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Chat(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | Stop | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=256)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    thinking_budget: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    REFUSED = {
        "audio": ((None,), "the model writes text only."),
        "modalities": ((None, ["text"]), "the model writes text only."),
        "functions": ((None, []), "use tools."),
        "function_call": ((None, "none"), "use tool_choice."),
        "web_search_options": ((None,), "this server reaches nothing beyond itself."),
        "verbosity": ((None, "medium"), "no model here knows it; say it in the system prompt."),
        "continue_final_message": ((None, False), "use /v1/completions with the rendered prompt."),
        "add_generation_prompt": ((None, True), "use /v1/completions with the rendered prompt."),
        "chat_template": ((None,), "a template comes with its model."),
        "use_beam_search": ((None, False), "only sampling is there."),
        "best_of": ((None, 1), "use n and choose."),
        "prompt_logprobs": ((None,), "only what is generated has log-probabilities."),
        "moderation": ((None,), "this server has no moderation."),
    }  # fmt: skip


class Completion(Sampled):
    """POST /v1/completions."""

    prompt: Text | Annotated[list[Text] | list[TokenId] | list[list[TokenId]], Field(min_length=1, max_length=2**20)]
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | Stop | None = None
    max_tokens: Count | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    REFUSED = {
        "suffix": ((None, ""), "no model here fills in the middle."),
        "best_of": ((None, 1), "use n and choose."),
        "use_beam_search": ((None, False), "only sampling is there."),
        "prompt_logprobs": ((None,), "only what is generated has log-probabilities."),
    }  # fmt: skip


class Embedding(Body):
    """POST /v1/embeddings."""

    model: Annotated[str, Field(max_length=1000)] | None = None
    input: Text | Annotated[list[Text] | list[TokenId] | list[list[TokenId]], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None


BODIES: tuple[type[Body], ...] = (Chat, Completion, Embedding)
