"""Where an answer stands in a completion."""

OPEN, CLOSE = "<answer>", "</answer>"
ASK = f"Write the final answer as {OPEN} ... {CLOSE}."


def find_answer(completion: str) -> tuple[str | None, str]:
    """The text between the one `<answer>` and the `</answer>` that ends the completion, or None and why."""
    if completion.count(OPEN) != 1 or completion.count(CLOSE) != 1:
        return None, f"{completion.count(OPEN)} {OPEN} and {completion.count(CLOSE)} {CLOSE}, one each is wanted"
    after = completion.partition(OPEN)[2]
    answer, close, rest = after.partition(CLOSE)
    if not close:
        return None, f"{CLOSE} comes before {OPEN}"
    if rest.strip(" \n\t"):
        return None, f"something follows {CLOSE}"
    return answer.strip(" \n\t"), ""
