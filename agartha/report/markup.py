"""HTML that is safe by construction: a plain string is always escaped, only what `element` built is not."""

from html import escape


class Markup(str):
    """Text that is already HTML."""


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """One element; `class_` is written `class`, and an underscore in a name as a hyphen.

    >>> element("p", "1 < 2 ", element("b", "yes"), class_="note")
    '<p class="note">1 &lt; 2 <b>yes</b></p>'
    """
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for name, value in attributes.items()
    )
    return Markup(f"<{tag}{named}>{join(*children)}</{tag}>")


def join(*children: object) -> Markup:
    """The children one after the other, all but markup escaped."""
    return Markup("".join(child if isinstance(child, Markup) else escape(str(child)) for child in children))
