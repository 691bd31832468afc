"""Words found in a text that comes in pieces, however it is cut (Aho and Corasick 1975)."""

import re
from collections import deque
from collections.abc import Iterator, Sequence


class Matcher:
    """The words to look for. Of two that end at the same character the longer counts; a match is never part of another."""

    def __init__(self, words: Sequence[str]):
        self.next: list[dict[str, int]] = [{}]
        self.depth, self.fail, self.found = [0], [0], [""]
        for word in words:
            self._add(word)
        self._link()
        self.first = re.compile("[" + "".join(map(re.escape, self.next[0])) + "]") if self.next[0] else None

    def _add(self, word: str) -> None:
        state = 0
        for character in word:
            if character not in self.next[state]:
                self.next[state][character] = len(self.next)
                self.next.append({})
                self.depth.append(self.depth[state] + 1)
                self.fail.append(0)
                self.found.append("")
            state = self.next[state][character]
        self.found[state] = word

    def _link(self) -> None:
        """To every state the longest proper suffix of it that also begins a word."""
        queue = deque(self.next[0].values())
        while queue:
            state = queue.popleft()
            for character, child in self.next[state].items():
                self.fail[child] = self.step(self.fail[state], character)
                queue.append(child)
            self.found[state] = self.found[state] or self.found[self.fail[state]]

    def step(self, state: int, character: str) -> int:
        while state and character not in self.next[state]:
            state = self.fail[state]
        return self.next[state].get(character, 0)


class Search:
    """One text, searched as it comes. What may yet become a word is held back, and nothing else."""

    def __init__(self, matcher: Matcher):
        self.matcher, self.state, self.held = matcher, 0, ""

    def feed(self, text: str) -> Iterator[tuple[str, str]]:
        """Pairs of a text and the word that ends it; the last one's word is ""."""
        matcher, state, at = self.matcher, self.state, len(self.held)
        text, begin = self.held + text, 0
        if matcher.first is None:
            yield text, ""
            return
        while at < len(text):
            if not state:
                candidate = matcher.first.search(text, at)
                if candidate is None:
                    break
                at = candidate.start()
            state = matcher.step(state, text[at])
            at += 1
            if matcher.found[state]:
                word, state = matcher.found[state], 0
                yield text[begin : at - len(word)], word
                begin = at
        self.state, end = state, len(text) - matcher.depth[state]
        self.held = text[end:]
        yield text[begin:end], ""

    def finish(self) -> str:
        """What was held back and became no word."""
        held, self.held, self.state = self.held, "", 0
        return held
