"""Pages are held, shared, forgotten and taken back; none is lost or held twice by mistake."""
from __future__ import annotations

import numpy as np

from muladd.llm.pages import PAGE
from muladd.llm.serve.sharing import Sharing


def read(sharing, ids):
    """What an engine does with a text: begin, read page by page, seal each."""
    text = sharing.begin(ids)
    found = text.length
    while text.length < len(ids):
        length = min(text.length + PAGE, len(ids))
        assert sharing.grow(text, length)
        text.length = length
        sharing.seal(text, ids)
    return text, found


def test_equal_beginnings_are_there_already():
    sharing = Sharing(8)
    system = list(range(2 * PAGE))
    a, found = read(sharing, [*system, 1, 2])
    assert found == 0 and sharing.held == 3
    b, found = read(sharing, [*system, 3])
    assert found == 2 * PAGE and sharing.held == 4 and a.pages[:2] == b.pages[:2]
    sharing.end(a)
    sharing.end(b)
    assert sharing.held == 0
    c, found = read(sharing, system)  # something is left to compute
    assert found == PAGE
    d, found = read(sharing, [9, *system])
    assert found == 0


def test_pages_computed_twice_become_one():
    sharing = Sharing(4)
    ids = list(range(2 * PAGE))
    texts = [sharing.begin(ids), sharing.begin(ids)]  # both begin before anything is known
    for length in (PAGE, 2 * PAGE):
        for text in texts:
            assert sharing.grow(text, length)
            text.length = length
            sharing.seal(text, ids)
    assert texts[0].pages == texts[1].pages and sharing.held == 2
    for text in texts:
        sharing.end(text)
    assert sharing.held == 0 and sharing.grow(sharing.begin([1]), 4 * PAGE)


def test_the_oldest_unused_page_goes_first_and_a_text_never_before_its_continuation():
    sharing = Sharing(4)
    for first in (100, 200):
        text, _ = read(sharing, [first, *range(2 * PAGE - 1)])
        sharing.end(text)
    text = sharing.begin([])
    assert sharing.grow(text, PAGE)  # the second page of the first text goes
    assert sharing.begin([100, *range(2 * PAGE)]).length == PAGE
    assert not sharing.grow(text, 5 * PAGE) and len(text.pages) == 1
    again = sharing.begin([200, *range(2 * PAGE)])
    assert again.length == 2 * PAGE


def test_forgotten_pages_are_found_no_more_nor_what_stands_after_them():
    sharing = Sharing(8)
    ids = list(range(3 * PAGE))
    a, _ = read(sharing, ids)
    b, found = read(sharing, [*ids[: 2 * PAGE], *ids[:PAGE]])  # shares two pages
    c, _ = read(sharing, [*ids, *ids[:PAGE]])
    sharing.end(c)  # its last page is known, and nobody's
    assert found == 2 * PAGE and sharing.held == 4
    clear = sharing.forget(a)
    assert not set(clear) & set(b.pages) and len(clear) == 2
    sharing.end(a)
    assert sharing.begin([*ids, 1]).length == 0 and sharing.held == 3
    sharing.end(b)
    assert sharing.held == 0 and sharing.grow(sharing.begin([1]), 8 * PAGE)


def test_random_lives(rng):
    """Whatever happens, what is held is what texts hold, and known pages mean their tokens."""
    sharing, texts, content = Sharing(12), [], {}
    for _ in range(3000):
        if texts and (rng.random() < 0.4 or len(texts) > 5):
            sharing.end(texts.pop(int(rng.integers(len(texts))))[0])
            continue
        ids = np.repeat(rng.integers(0, 2, int(rng.integers(1, 5))), PAGE).tolist()
        ids += [7] * int(rng.integers(0, 3))
        text = sharing.begin(ids)
        for n in range(text.length // PAGE):
            assert content[text.pages[n]] == ids[: (n + 1) * PAGE]
        while text.length < len(ids):
            length = min(text.length + int(rng.integers(1, 2 * PAGE)), len(ids))
            if not sharing.grow(text, length):
                break
            for n in range(text.length // PAGE, len(text.pages)):
                content[text.pages[n]] = ids[: (n + 1) * PAGE]
            text.length = length
            sharing.seal(text, ids)
        texts.append((text, ids))
        assert sharing.held == len({p for t, _ in texts for p in t.pages})
