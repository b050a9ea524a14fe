"""What an agent remembers of its session: facts (what it took and how it rated it) and feelings (how each page left it).

A memory is a fold over the pages so far, so a session that stops is rebuilt from the stored pages exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from agents.types import Feeling

MOOD: dict[Feeling, float] = {"delighted": 1.0, "satisfied": 0.5, "indifferent": 0.0, "bored": -0.5, "annoyed": -1.0}


@dataclass(frozen=True)
class Memory:
    """taken: (item, title, rating) in order; feelings: one a page."""

    taken: tuple[tuple[int, str, float], ...] = ()
    feelings: tuple[Feeling, ...] = ()

    def after(self, taken: tuple[tuple[int, str, float], ...], feeling: Feeling) -> Memory:
        """The memory one page later."""
        return replace(self, taken=self.taken + taken, feelings=(*self.feelings, feeling))

    @property
    def mood(self) -> float:
        """Recent feeling in -1 .. 1; each page weighs half of the next."""
        mood = 0.0
        for feeling in self.feelings:
            mood = 0.5 * mood + 0.5 * MOOD[feeling]
        return mood

    def text(self, recent: int = 3) -> str:
        """One or two short sentences for a prompt; empty before the first page."""
        if not self.feelings:
            return ""
        titles = "; ".join(f"{title} ({rating:g})" for _, title, rating in self.taken[-recent:])
        took = f"took {len(self.taken)}, lately {titles}" if titles else "took nothing"
        return f"So far: {len(self.feelings)} pages, {took}. Feeling {self.feelings[-1]}."
